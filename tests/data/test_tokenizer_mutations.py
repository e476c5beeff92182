"""Tokenizer files that were changed at random: read, or refused in one line, and nothing else."""

import json
import pathlib
import time

import hypothesis
import pytest
import tokenizers
from hypothesis import strategies as st
from tokenizers import models, normalizers, pre_tokenizers, processors

from mpojax import data

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "##s", "schön"]
BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
TEXTS = ["the cats <e1> [MASK]", "", "schön 中国 �\x00", "a" * 300]


def as_json(value) -> bytes:
    return json.dumps(value, ensure_ascii=False, indent=1).encode()


def token(content):
    return {"content": content, "lstrip": False, "normalized": True, "special": False}


def word_piece_json() -> bytes:
    numbered = {word: number for number, word in enumerate(WORDS)}
    backend = tokenizers.Tokenizer(models.WordPiece(numbered, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    backend.add_special_tokens(WORDS[:5])
    backend.enable_truncation(7)
    return backend.to_str(pretty=True).encode()


def unigram_json() -> bytes:
    pieces = [("<unk>", 0.0), ("</s>", 0.0), ("▁the", -1.0), ("▁", -2.0), ("c", -3.0)]
    backend = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=0))
    backend.normalizer = normalizers.Sequence([normalizers.Replace("``", '"'), normalizers.NFKD()])
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B:1 </s>:1", special_tokens=[("</s>", 1)]
    )
    return backend.to_str(pretty=True).encode()


ROLES = {"mask_token": token("[MASK]"), "additional_special_tokens": ["the", token("cat")]}
SETTINGS = {
    "tokenizer_class": "BertTokenizer",
    "do_lower_case": True,
    "strip_accents": None,
    "tokenize_chinese_chars": False,
    "split_special_tokens": False,
    "truncation_side": "left",
    "cls_token": "[CLS]",
    "added_tokens_decoder": {"4": token("[MASK]"), "9": token("<e1>")},
}
NUMBERED = {each: number for number, each in enumerate([*BYTES, "he", "<s>", "</s>"])}
BYTE_LEVEL = {
    "vocab.json": as_json(NUMBERED),
    "merges.txt": b"#version: 0.2\nh e\n",
    "added_tokens.json": as_json({"<e1>": len(NUMBERED)}),
    "special_tokens_map.json": as_json({"mask_token": "he", "bos_token": token("<s>")}),
    "tokenizer_config.json": as_json(
        {"tokenizer_class": "Qwen2Tokenizer", "add_prefix_space": True, "add_bos_token": True}
    ),
    "config.json": as_json({"model_type": "qwen2", "vocab_size": 259}),
}
FOLDERS = {
    "vocab.txt": {
        "vocab.txt": "\n".join(WORDS).encode(),
        "tokenizer_config.json": as_json(SETTINGS),
        "config.json": as_json({"model_type": "bert", "tokenizer_class": None}),
    },
    "vocab.txt with a map": {
        "vocab.txt": "\r\n".join(["\ufeff[PAD]", *WORDS[1:], ""]).encode(),
        "special_tokens_map.json": as_json(ROLES),
        "added_tokens.json": as_json({"<e1>": 9}),
        "tokenizer_config.json": as_json({"sep_token": {"__type": "AddedToken", **token("[SEP]")}}),
    },
    "vocab.json": BYTE_LEVEL,
    "WordPiece tokenizer.json": {
        "tokenizer.json": word_piece_json(),
        "tokenizer_config.json": as_json(SETTINGS),
    },
    "Unigram tokenizer.json": {
        "tokenizer.json": unigram_json(),
        "tokenizer_config.json": as_json(
            {"tokenizer_class": "AlbertTokenizer", "pad_token": "</s>", "keep_accents": True}
        ),
    },
}
ODD_VALUES = [
    *(None, True, 0, -1, 5, 2**31, 10**12, 10**400, 1.5, float("nan"), 1e400),
    *("", "abc", "[MASK]", "\x00", "x" * 5000, "\ud800", "../../etc/passwd", "$A", "the the"),
    *([], [None], ["a", "a"], {}, {"content": 3}, {"content": {}}, {"a": {"b": [1]}}, [[["x"]]]),
]
NESTED = b'{"a":' * 100_000
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 440449768\n"


@st.composite
def changed_json(draw, content):
    """A JSON file with one value, name or entry changed."""
    whole = json.loads(content)
    place, path = whole, []
    while True:
        names = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not names:
            break
        path.append((place, draw(st.sampled_from(names))))
        place = path[-1][0][path[-1][1]]
        if not isinstance(place, (dict, list)) or draw(st.integers(0, 2)) == 0:
            break
    parent, name = path[-1]
    value = parent[name]
    match draw(st.sampled_from(["replace", "replace", "remove", "rename", "repeat"])):
        case "replace":
            parent[name] = draw(st.sampled_from(ODD_VALUES))
        case "remove":
            del parent[name]
        case "rename" if isinstance(parent, dict):
            parent[draw(st.sampled_from(["x", "", "-1", "99999999999", "\ud800"]))] = parent.pop(
                name
            )
        case _ if isinstance(parent, list):
            parent.append(value)
        case _:
            parent["again"] = value
    return json.dumps(whole).encode()


@st.composite
def changed_bytes(draw, content):
    """A file that is cut, has other bytes somewhere, or is of another kind."""
    place = draw(st.integers(0, len(content)))
    match draw(st.sampled_from(["cut", "put", "instead", "twice", "other"])):
        case "cut":
            return content[:place]
        case "put":
            return content[:place] + draw(st.binary(min_size=1, max_size=4)) + content[place:]
        case "instead":
            return content[:place] + draw(st.binary(min_size=1, max_size=4)) + content[place + 2 :]
        case "twice":
            return content[:place] + content
    return draw(st.sampled_from([b"", b"\n", b"[]", b"1", b'"a"', NESTED, "ä".encode("latin-1")]))


@st.composite
def changed_folders(draw):
    files = dict(FOLDERS[draw(st.sampled_from(sorted(FOLDERS)))])
    name = draw(st.sampled_from(sorted(files)))
    is_json = name.endswith(".json") and draw(st.integers(0, 3))
    files[name] = draw((changed_json if is_json else changed_bytes)(files[name]))
    return files


def write(folder: pathlib.Path, files: dict[str, bytes]) -> pathlib.Path:
    for path in folder.iterdir():
        path.unlink()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("name", FOLDERS)
def test_files_as_they_are(tmp_path, name):
    tokenizer = data.Tokenizer.from_folder(write(tmp_path, FOLDERS[name]))
    assert tokenizer.encode(TEXTS, max_length=40)["input_ids"].shape == (4, 40)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tokenizer")


def message_of_reading(folder) -> str:
    """Reads and uses a folder; the message of its one kind of error, or nothing."""
    try:
        tokenizer = data.Tokenizer.from_folder(folder)
        tokenizer.encode(TEXTS, TEXTS, max_length=40)
        tokenizer.encode_plain(TEXTS)
    except UnicodeError:
        raise  # names no file
    except (ValueError, OSError) as error:
        return str(error)
    return ""


@hypothesis.given(changed_folders())
def test_changed_files(folder, files):
    write(folder, files)
    start = time.process_time()
    message = message_of_reading(folder)
    assert "\n" not in message
    assert len(message) < 1500
    assert time.process_time() - start < 2


def folder_of(tmp_path, name, **contents):
    files = FOLDERS[name] | {key.replace("__", "."): content for key, content in contents.items()}
    return write(tmp_path, files)


def settings(**values):
    return as_json({"tokenizer_class": "BertTokenizer"} | values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"pad_token": 5}, r"tokenizer_config\.json: pad_token=5 must be a token \(a text"),
        ({"mask_token": {"content": 5}}, r"mask_token=\{'content': 5\} must be a token"),
        ({"mask_token": {"content": "a", "lstrip": "yes"}}, r"mask_token=.* must be a token"),
        ({"do_lower_case": "x"}, r"do_lower_case='x' must be true or false"),
        ({"strip_accents": 1}, r"strip_accents=1 must be true or false or null"),
        ({"tokenize_chinese_chars": []}, r"tokenize_chinese_chars=\[\] must be true or false"),
        ({"truncation_side": "top"}, r"truncation_side='top' must be one of 'left', 'right'"),
        ({"tokenizer_class": 1}, r"tokenizer_class=1 must be null or the name of a class"),
        ({"tokenizer_class": "a; rm"}, r"tokenizer_class='a; rm' must be null or the name"),
        ({"added_tokens_decoder": []}, r"added_tokens_decoder=\[\] must be an object of tokens"),
        ({"added_tokens_decoder": {"x": token("a")}}, r"must be an object of tokens .* by id"),
        ({"added_tokens_decoder": {"9": "a"}}, r"must be an object of tokens .* by id"),
        ({"added_tokens_decoder": {"9" * 30: token("a")}}, r"by id from 0 to 16777215"),
        ({"additional_special_tokens": [5]}, r"additional_special_tokens=\[5\] must be a list"),
        ({"additional_special_tokens": 5}, r"additional_special_tokens=5 must be a list"),
    ],
)
@pytest.mark.parametrize("name", ["vocab.txt", "WordPiece tokenizer.json"])
def test_settings_of_a_wrong_type(tmp_path, name, values, message):
    folder = folder_of(tmp_path, name, tokenizer_config__json=settings(**values))
    with pytest.raises(ValueError, match=message):
        data.Tokenizer.from_folder(folder)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("vocab__json", b'{"a": 0, "b": 0}', r"vocab\.json holds ids twice: \[0\]"),
        ("vocab__json", b'{"a": true}', r"the id of 'a' is True in place of an integer from 0"),
        ("vocab__json", b'{"a": 4294967296}', r"the id of 'a' is 4294967296 in place of an"),
        ("vocab__json", b'{"\\ud800": 0}', r"vocab\.json is not valid JSON: .*surrogates"),
        ("vocab__json", b"{}", r"vocab\.json holds no tokens"),
        ("vocab__json", NESTED, r"vocab\.json is nested too deeply"),
        ("vocab__json", POINTER, r"vocab\.json is a pointer of Git LFS, not the file itself: run"),
        ("tokenizer__json", POINTER, r"tokenizer\.json is a pointer of Git LFS, not the file"),
        ("merges__txt", POINTER, r"merges\.txt is a pointer of Git LFS, not the file itself: run"),
        ("config__json", b'{"model_type": {}}', r"config\.json: model_type=\{\} must be a text"),
        ("tokenizer_config__json", NESTED, r"tokenizer_config\.json is nested too deeply"),
        ("special_tokens_map__json", b'{"eos_token": [1]}', r"map\.json: eos_token=\[1\] must be"),
        ("added_tokens__json", b'{"a": "b"}', r"added_tokens\.json is not a vocabulary"),
        ("merges__txt", b"h e\nh\xe9 e", r"merges\.txt, line 2 is not UTF-8 .* iconv -f latin1"),
        (
            "merges__txt",
            b"h e" + b"h" * 10**6,
            r"the merges do not fit the vocabulary: .*hhh\.\.\.$",
        ),
    ],
)
def test_odd_byte_level_files(tmp_path, file, content, message):
    with pytest.raises(ValueError, match=message) as error:
        data.Tokenizer.from_folder(folder_of(tmp_path, "vocab.json", **{file: content}))
    assert len(str(error.value)) < 1000


def test_vocab_txt_with_a_byte_order_mark(tmp_path):
    tokenizer = data.Tokenizer.from_folder(folder_of(tmp_path, "vocab.txt with a map"))
    assert [tokenizer.token_to_id(word) for word in WORDS] == list(range(len(WORDS)))
    assert tokenizer.pad_id == 0


def test_vocab_txt_in_latin_1(tmp_path):
    folder = folder_of(tmp_path, "vocab.txt", vocab__txt="\n".join(WORDS).encode("latin-1"))
    with pytest.raises(ValueError, match=r"vocab\.txt, line 9 is not UTF-8 .*; convert the file"):
        data.Tokenizer.from_folder(folder)


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.txt", "tokenizer_config.json"])
def test_files_that_are_too_large(tmp_path, name):
    folder = folder_of(tmp_path, "vocab.txt")
    with open(folder / name, "ab") as file:
        file.truncate(2**40)  # a hole: it takes no space
    with pytest.raises(ValueError, match=r"has 1,099,511,627,776 bytes, too many for a"):
        data.Tokenizer.from_folder(folder)


def test_ids_that_no_model_has(tmp_path):
    content = word_piece_json().replace(b'"cat": 6', b'"cat": 4000000000')
    folder = folder_of(tmp_path, "WordPiece tokenizer.json", tokenizer__json=content)
    with pytest.raises(ValueError, match=r"has ids above 16777215"):
        data.Tokenizer.from_folder(folder)


def test_texts_that_a_tokenizer_cannot_encode(tmp_path):
    content = word_piece_json().replace(b'"unk_token": "[UNK]"', b'"unk_token": "[none]"')
    folder = folder_of(tmp_path, "WordPiece tokenizer.json", tokenizer__json=content)
    tokenizer = data.Tokenizer.from_folder(folder)
    for encode in (tokenizer.encode, tokenizer.encode_plain):
        with pytest.raises(ValueError, match=r"cannot encode the text: WordPiece error: Missing"):
            encode(["xyz"])
