"""Tokenizers built from vocabulary files and settings: the ids are those of transformers."""

import json
import pathlib
import shlex
import subprocess
import sys
import tempfile

import hypothesis
import pytest
import tokenizers
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from mpojax import data, tokenizer_folders
from mpojax.data.tokenizers import classes

transformers = pytest.importorskip("transformers")
transformers.logging.set_verbosity_error()

BERT_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [
    *BERT_SPECIAL,
    *(
        "the",
        "cat",
        "Cat",
        "schön",
        "schon",
        "hacía",
        "hacia",
        "中",
        "国",
        "中国",
        "##国",
        "e",
        "##1",
    ),
    *("<", ">", "/", "[", "]", "mask", "MASK", "hello", "Hello", "##s", "2", "##0", "unused", "İ"),
]
BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
MERGES = [
    *(("2", "0"), ("2", "3"), ("Ġ", "("), ("(", "a"), ("'", "S"), ("h", "e"), ("he", "l")),
    *(("l", "o"), ("Ġ", "he"), ("Ã", "©"), ("e", "Ì"), ("Ċ", "Ċ"), ("Ġ", "Ġ"), ("<", "s")),
]
BYTE_SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "<|endoftext|>"]
BYTE_TOKENS = list(dict.fromkeys([*BYTES, *(a + b for a, b in MERGES), *BYTE_SPECIAL]))
ADDED = ["<e1>", "</e1>", "New Word", "ÉLAN", "[x]"]
TEXTS = [
    *("the Cat <e1> hello </e1>", "Schön HACÍA", "中国 e1 [MASK] the", "the[MASK]hello <MASK>"),
    *("hello (a 2023 it'S", "hello<|endoftext|> <s>he</s>", "  new word NEW WORD New Words", ""),
    *("ÉLAN élan elan\n\n <mask> é é", "[x][X] [PAD]x [pad]", "İ\u2028\x00\t�中a国"),
]


def token(content, **flags):
    usual = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
    return {"content": content, **usual, **flags}


def typed(content, **flags):
    return {"__type": "AddedToken", **token(content, **flags)}


def write(folder, words=None, **contents):
    """A tokenizer's folder: vocab.txt with words, else GPT-2-like files, and JSON files."""
    if words:
        (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    else:
        numbered = {each: number for number, each in enumerate(BYTE_TOKENS)}
        (folder / "vocab.json").write_text(json.dumps(numbered), encoding="utf-8")
        merges = "".join(f"{a} {b}\n" for a, b in MERGES)
        (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}", encoding="utf-8")
    for name, content in contents.items():
        if content is not None:
            (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def copy(folder, target, model_type):
    """The tokenizer of a folder next to another model, or none."""
    target.mkdir()
    for name, content in tokenizer_folders.copies(folder, model_type).items():
        (target / name).write_bytes(content)
    if model_type:
        (target / "config.json").write_text(json.dumps(config(model_type)))
    return data.Tokenizer.from_folder(target)


def assert_copies_alike(folder, texts=TEXTS):
    """Copies of a tokenizer give its ids: in a folder of ours, in a corpus, in an export."""
    source = data.Tokenizer.from_folder(folder)
    want = source.encode(texts, max_length=100)["input_ids"].tolist()
    with tempfile.TemporaryDirectory() as place:
        for model_type in ("mpojax", None):
            made = copy(folder, pathlib.Path(place, str(model_type)), model_type)
            assert made.encode(texts, max_length=100)["input_ids"].tolist() == want


def assert_same_ids(folder, texts=TEXTS):
    assert_copies_alike(folder, texts)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    ours = data.Tokenizer.from_folder(folder)
    for first in texts:
        for pair in (None, "hello 2e"):
            want = theirs(first, pair)["input_ids"]
            got = ours.encode([first], [pair] if pair else None, max_length=100)
            got = got["input_ids"][0][got["attention_mask"][0] == 1].tolist()
            tokens = [theirs.convert_ids_to_tokens(ids) for ids in (got, want)]
            assert got == want, (first, *tokens)


def config(model_type):
    return {"model_type": model_type}


BERT_TABLE = {
    "defaults": {},
    "cased": {"do_lower_case": False},
    "keeps accents": {"strip_accents": False},
    "strips accents, cased": {"do_lower_case": False, "strip_accents": True},
    "accents as case": {"strip_accents": None},
    "whole Chinese words": {"tokenize_chinese_chars": False},
    "cased, whole Chinese words": {"tokenize_chinese_chars": False, "do_lower_case": False},
    "never_split is not looked at": {"never_split": ["Hello", "中国"]},
    "others are not looked at": {"do_basic_tokenize": False, "model_max_length": 5, "x": {}},
    "another unknown token": {"unk_token": "unused"},
    "other tokens around": {"cls_token": "<", "sep_token": typed(">")},
    "a mask that takes space": {"mask_token": typed("[MASK]", lstrip=True, rstrip=True)},
    "listed tokens": {"additional_special_tokens": ["MASK", "Hello"]},
    "listed by the new name": {"extra_special_tokens": ["MASK"], "additional_special_tokens": []},
    "named tokens": {"extra_special_tokens": {"image_token": "Cat"}, "video_token": "中国"},
    "split_special_tokens": {"split_special_tokens": True},
    "flags of bos and eos are not looked at": {"add_bos_token": True, "bos_token": "the"},
}


@pytest.mark.parametrize("name", ["Bert", "DistilBert", "MobileBert"])
@pytest.mark.parametrize("settings", BERT_TABLE.values(), ids=BERT_TABLE)
def test_bert_settings(tmp_path, name, settings):
    settings = {"tokenizer_class": f"{name}Tokenizer"} | settings
    write(tmp_path, WORDS, tokenizer_config=settings, config=config(name.lower()))
    assert_same_ids(tmp_path)


NEXT = len(WORDS)
ADDED_TABLE = {
    "added_tokens.json": {
        "added_tokens": {"<e1>": NEXT, "</e1>": NEXT + 1, "the": WORDS.index("the")}
    },
    "special by the map": {
        "added_tokens": {"<e1>": NEXT, "ÉLAN": NEXT + 1},
        "special_tokens_map": {
            "additional_special_tokens": ["<e1>"],
            "mask_token": token("ÉLAN", lstrip=True),
        },
    },
    "special by the configuration": {
        "added_tokens": {"ÉLAN": NEXT, "[x]": NEXT + 1},
        "tokenizer_config": {"additional_special_tokens": ["ÉLAN"], "sep_token": "[x]"},
    },
    "the map stands over the configuration": {
        "tokenizer_config": {"cls_token": "the", "unk_token": "cat", "sep_token": typed("[SEP]")},
        "special_tokens_map": {
            "cls_token": "[CLS]",
            "unk_token": token("unused"),
            "sep_token": ">",
        },
    },
    "the map is not read next to added_tokens_decoder": {
        "tokenizer_config": {"added_tokens_decoder": {"0": token("[PAD]", special=True)}},
        "special_tokens_map": {"cls_token": "the"},
        "added_tokens": {"<e1>": 5},
    },
    "added_tokens_decoder": {
        "tokenizer_config": {
            "added_tokens_decoder": {
                str(NEXT + 1): token("ÉLAN", normalized=True),
                str(NEXT): token("<e1>", lstrip=True, rstrip=True),
                str(NEXT + 2): token("New Word", single_word=True, normalized=True),
                str(NEXT + 3): token("[x]", special=True),
                "4": token("[MASK]", normalized=True),
            },
            "mask_token": "[MASK]",
        }
    },
}


@pytest.mark.parametrize("contents", ADDED_TABLE.values(), ids=ADDED_TABLE)
@pytest.mark.parametrize("lower", [True, False])
def test_added_and_special_tokens(tmp_path, contents, lower):
    settings = contents.get("tokenizer_config", {}) | {"do_lower_case": lower}
    write(tmp_path, WORDS, config=config("bert"), **contents | {"tokenizer_config": settings})
    assert_same_ids(tmp_path)


BYTE_TABLE = {
    "defaults": {},
    "a space before": {"add_prefix_space": True},
    "a space as before": {"add_prefix_space": False},
    "bos": {"add_bos_token": True, "bos_token": "<s>"},
    "eos": {"add_eos_token": True, "eos_token": typed("</s>", normalized=True)},
    "both": {"add_bos_token": True, "add_eos_token": True, "bos_token": "<s>", "eos_token": "</s>"},
    "no bos to add": {"add_bos_token": True, "bos_token": None},
    "a mask that takes space": {"mask_token": typed("<mask>", lstrip=True, rstrip=True)},
    "other tokens around": {"cls_token": "<unk>", "sep_token": "<|endoftext|>"},
    "split_special_tokens": {"split_special_tokens": True},
    "added": {
        "added_tokens_decoder": {
            str(len(BYTE_TOKENS)): token("<e1>", special=True, lstrip=True),
            str(len(BYTE_TOKENS) + 1): token("ÉLAN", normalized=True),
        },
        "additional_special_tokens": ["<e1>"],
    },
}


@pytest.mark.parametrize("name", ["GPT2", "Roberta", "Qwen2"])
@pytest.mark.parametrize("settings", BYTE_TABLE.values(), ids=BYTE_TABLE)
def test_byte_level_settings(tmp_path, name, settings):
    if name == "Qwen2":  # which cannot build GPT2Tokenizer's ByteLevel from None
        settings = {"add_prefix_space": None} | settings
    settings = {"tokenizer_class": f"{name}Tokenizer"} | settings
    write(tmp_path, tokenizer_config=settings, config=config(name.lower()))
    assert_same_ids(tmp_path)


@pytest.mark.parametrize("model_type", ["gpt2", "roberta", "qwen2", "opt", "bart"])
def test_class_by_the_type_of_the_model(tmp_path, model_type):
    write(tmp_path, config=config(model_type))
    assert_same_ids(tmp_path)


def test_qwen2_folders_that_name_another_class(tmp_path):
    settings = {"tokenizer_class": "GPT2Tokenizer"}
    write(tmp_path, tokenizer_config=settings, config=config("qwen2"))
    assert_same_ids(tmp_path)


flags = st.fixed_dictionaries(
    dict.fromkeys(("lstrip", "rstrip", "normalized", "single_word", "special"), st.booleans())
)


@st.composite
def folders(draw, words, roles, settings, added=ADDED):
    """Random tokenizer_config, special_tokens_map and added_tokens, for `write`."""
    number = len(words)
    names = draw(st.lists(st.sampled_from(added), unique=True))
    numbered = {name: number + i for i, name in enumerate(names)}
    # transformers writes templates as one text, in which a token must not hold a space.
    known = st.sampled_from([*words[-8:], *(name for name in names if " " not in name)])
    named = {}
    for role in draw(st.lists(st.sampled_from(roles), unique=True)):
        content = draw(known)
        named[role] = draw(st.sampled_from([content, typed(content), typed(content, lstrip=True)]))
    if draw(st.booleans()):
        named["additional_special_tokens"] = draw(st.lists(known, unique=True, max_size=3))
    values = draw(st.fixed_dictionaries({}, optional=settings)) | named
    contents = {}
    if draw(st.booleans()):
        values["added_tokens_decoder"] = {
            str(n): {"content": name} | draw(flags) for name, n in numbered.items()
        }
    else:
        contents["added_tokens"] = numbered
    if draw(st.booleans()):
        of_map = {role: draw(known) for role in draw(st.lists(st.sampled_from(roles), unique=True))}
        contents["special_tokens_map"] = {
            role: draw(st.sampled_from([name, token(name, rstrip=True)]))
            for role, name in of_map.items()
        }
    return contents | {"tokenizer_config": values}


pieces = st.sampled_from(
    [*ADDED, *BERT_SPECIAL, *BYTE_SPECIAL, *WORDS, "é", "é", "'S", "20", "(a", "élan", "NEW WORD"]
)
texts = st.lists(st.one_of(pieces, st.just(" "), st.text(max_size=6)), max_size=8).map("".join)
booleans = st.booleans()


@hypothesis.settings(max_examples=40)
@hypothesis.given(
    folders(
        WORDS,
        ["mask_token", "pad_token", "cls_token", "sep_token"],
        {
            "do_lower_case": booleans,
            "strip_accents": st.sampled_from([True, False, None]),
            "tokenize_chinese_chars": booleans,
            "never_split": st.just(["the"]),
            "split_special_tokens": booleans,
            "truncation_side": st.sampled_from(["left", "right"]),
        },
    ),
    st.sampled_from(["bert", "distilbert", "mobilebert"]),
    st.lists(texts, min_size=1, max_size=3),
)
def test_bert_like_as_transformers(contents, model_type, chosen):
    with tempfile.TemporaryDirectory() as name:
        folder = write(pathlib.Path(name), WORDS, config=config(model_type), **contents)
        assert_same_ids(folder, chosen)


@hypothesis.settings(max_examples=40)
@hypothesis.given(
    folders(
        BYTE_TOKENS,
        ["mask_token", "pad_token", "cls_token", "sep_token", "bos_token", "eos_token"],
        dict.fromkeys(
            ("add_prefix_space", "add_bos_token", "add_eos_token", "split_special_tokens"), booleans
        ),
    ),
    st.sampled_from(["GPT2", "Roberta", "Qwen2"]),
    st.lists(texts, min_size=1, max_size=3),
)
def test_byte_level_as_transformers(contents, name, chosen):
    contents["tokenizer_config"]["tokenizer_class"] = f"{name}Tokenizer"
    with tempfile.TemporaryDirectory() as place:
        folder = write(pathlib.Path(place), config=config(name.lower()), **contents)
        assert_same_ids(folder, chosen)


@pytest.mark.parametrize("words", [WORDS, None])
@pytest.mark.parametrize("side", ["left", "right", None])
def test_truncation_side(tmp_path, words, side):
    settings = {"tokenizer_class": "BertTokenizer" if words else "RobertaTokenizer"}
    write(tmp_path, words, tokenizer_config=settings | ({"truncation_side": side} if side else {}))
    theirs = getattr(transformers, settings["tokenizer_class"]).from_pretrained(tmp_path)
    ours = data.Tokenizer.from_folder(tmp_path)
    again = tmp_path / "again"
    ours.save(again)
    for pair in (None, ["cat cat hello"]):
        want = theirs(["hello the cat mask"], pair, truncation=True, max_length=6)["input_ids"]
        for tokenizer in (ours, data.Tokenizer.from_folder(again)):
            got = tokenizer.encode(["hello the cat mask"], pair, max_length=6)["input_ids"]
            assert got.tolist() == want


@pytest.mark.parametrize("names", [None, ["input_ids", "attention_mask"]])
def test_token_types_where_the_model_takes_some(tmp_path, names):
    """transformers gives none where model_input_names has none: zeros to a model with a table."""
    settings = {"tokenizer_class": "BertTokenizer"} | (
        {"model_input_names": names} if names else {}
    )
    write(tmp_path, WORDS, tokenizer_config=settings)
    theirs = transformers.BertTokenizer.from_pretrained(tmp_path)(["the"], ["cat"])
    ours = data.Tokenizer.from_folder(tmp_path)
    ours.save(tmp_path / "again")
    for tokenizer in (ours, data.Tokenizer.from_folder(tmp_path / "again")):
        got = tokenizer.encode(["the"], ["cat"], max_length=5)["token_type_ids"]
        assert got.tolist() == theirs.get("token_type_ids", [[0] * 5])
        assert got.max() == (0 if names else 1)


def test_truncation_side_of_tokenizer_json(tmp_path):
    backend = bert_backend()
    backend.enable_truncation(4, direction="left")
    backend.save(str(tmp_path / "tokenizer.json"))
    encoded = data.Tokenizer.from_folder(tmp_path).encode(["hello the cat"], max_length=4)
    want = [WORDS.index(word) for word in ("[CLS]", "the", "cat", "[SEP]")]
    assert encoded["input_ids"].tolist() == [want]


def test_padding_is_on_the_right_whatever_the_files_say(tmp_path):
    write(tmp_path, WORDS, tokenizer_config={"padding_side": "left"})
    encoded = data.Tokenizer.from_folder(tmp_path).encode(["the"], max_length=5)
    assert encoded["attention_mask"].tolist() == [[1, 1, 1, 0, 0]]


def bert_backend(lowercase=True, **normalizer):
    backend = tokenizers.Tokenizer(
        models.WordPiece({word: n for n, word in enumerate(WORDS)}, unk_token="[UNK]")
    )
    backend.normalizer = normalizers.BertNormalizer(lowercase=lowercase, **normalizer)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    backend.add_special_tokens(BERT_SPECIAL)
    backend.add_tokens([tokenizers.AddedToken("ÉLAN"), "<e1>"])
    return backend


@pytest.mark.parametrize("lowercase", [True, False])
@pytest.mark.parametrize(
    "settings",
    [
        {"tokenizer_class": "BertTokenizer", "do_lower_case": False},
        {"tokenizer_class": "BertTokenizerFast", "do_lower_case": True, "strip_accents": False},
        {"tokenizer_class": "DistilBertTokenizer", "tokenize_chinese_chars": False},
        {"tokenizer_class": "MobileBertTokenizerFast", "model_max_length": 512},
        {"tokenizer_class": "PreTrainedTokenizerFast", "do_lower_case": False, "sep_token": ">"},
        {"do_lower_case": False},
        None,
    ],
)
def test_settings_that_contradict_tokenizer_json(tmp_path, lowercase, settings):
    write(tmp_path, WORDS, tokenizer_config=settings, config=config("bert"))
    bert_backend(lowercase, strip_accents=None).save(str(tmp_path / "tokenizer.json"))
    assert_same_ids(tmp_path)


@pytest.mark.parametrize("name", ["GPT2", "Roberta", "Qwen2", "PreTrained"])
@pytest.mark.parametrize("wanted", [True, False])
def test_prefix_space_that_contradicts_tokenizer_json(tmp_path, name, wanted):
    write(tmp_path, tokenizer_config={"tokenizer_class": "GPT2Tokenizer"})
    kind = "Qwen2" if name == "PreTrained" else name
    getattr(transformers, f"{kind}Tokenizer").from_pretrained(tmp_path).save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    settings |= {"add_prefix_space": wanted, "tokenizer_class": f"{name}TokenizerFast"}
    write(tmp_path, tokenizer_config=settings, config=config(kind.lower()))
    assert_same_ids(tmp_path)


def test_digits_of_tokenizer_json_stand(tmp_path):
    """SmolLM2's folder names GPT2Tokenizer, but its words are cut as tokenizer.json says."""
    write(tmp_path, tokenizer_config={"tokenizer_class": "GPT2Tokenizer"})
    backend = tokenizers.Tokenizer(
        models.BPE({each: n for n, each in enumerate(BYTE_TOKENS)}, MERGES)
    )
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(True), to_bytes])
    backend.save(str(tmp_path / "tokenizer.json"))
    ids = data.Tokenizer.from_folder(tmp_path).encode_plain(["2023"])[0]
    assert ids == [BYTE_TOKENS.index(digit) for digit in "2023"]


PIECES = ["▁the", "▁The", "▁schön", "▁schon", "▁", "t", "h", "e", "T", "E", "é", "é", '"', "n"]


def scored(special):
    return [*((t, 0.0) for t in special), *((p, -1.0 - n) for n, p in enumerate(PIECES))]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"do_lower_case": False},
        {"keep_accents": True},
        {"do_lower_case": False, "keep_accents": True},
        {"add_prefix_space": False},
        {"add_prefix_space": None},
    ],
)
@pytest.mark.parametrize("named", [True, False])
def test_albert(tmp_path, settings, named):
    special = ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"]
    transformers.AlbertTokenizer(vocab=scored(special)).save_pretrained(tmp_path)
    settings = ({"tokenizer_class": "AlbertTokenizer"} if named else {}) | settings
    write(tmp_path, tokenizer_config=settings, config=config("albert"))
    (tmp_path / "vocab.json").unlink()
    assert_same_ids(tmp_path, ["The ``Schön'' thé[MASK] the", "", "[CLS] é THE", *SPACES])


SPACES = ["the  the", " the", "the ", "  ", "the\tthe", "the\n\n the\r\nthe", "t[MASK]  h [SEP]\te"]
ALBERT_PIECES = ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]", *PIECES, "\t", "\n", "▁▁", "▁the▁"]


def albert_file(folder, words=None):
    """A tokenizer.json as transformers 4 converted it from a SentencePiece model."""
    backend = tokenizers.Tokenizer(
        models.Unigram([(piece, -0.1 * n) for n, piece in enumerate(ALBERT_PIECES)], unk_id=1)
    )
    backend.normalizer = normalizers.Sequence(
        [
            *(normalizers.Replace("``", '"'), normalizers.Replace("''", '"')),
            *(normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase()),
            normalizers.Replace(tokenizers.Regex(" {2,}"), " "),
        ]
    )
    backend.pre_tokenizer = words or pre_tokenizers.Metaspace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    backend.add_special_tokens(ALBERT_PIECES[:4])
    backend.add_special_tokens([tokenizers.AddedToken("[MASK]", lstrip=True, normalized=False)])
    backend.save(str(folder / "tokenizer.json"))
    return backend


def test_albert_shortens_runs_of_spaces(tmp_path):
    raw = albert_file(tmp_path)
    write(tmp_path, WORDS, tokenizer_config={"tokenizer_class": "AlbertTokenizer"})
    (tmp_path / "vocab.txt").unlink()
    the = ALBERT_PIECES.index("▁the")
    ours = data.Tokenizer.from_folder(tmp_path)
    assert raw.encode("the  the").ids == [2, the, the, 3]
    ids = ours.encode(["the  the"], max_length=4)["input_ids"][0]
    assert ids.tolist() == [2, the, the, 3]


@hypothesis.settings(max_examples=40)
@hypothesis.given(
    st.lists(
        st.one_of(
            st.sampled_from([*ALBERT_PIECES, " ", "  ", "\t", "\n", "\r\n"]), st.text(max_size=3)
        ),
        max_size=8,
    ).map("".join),
    st.fixed_dictionaries(
        {}, optional=dict.fromkeys(("do_lower_case", "keep_accents", "add_prefix_space"), booleans)
    ),
    st.booleans(),
)
def test_albert_as_transformers(text, settings, split):
    words = [pre_tokenizers.WhitespaceSplit()] * split + [pre_tokenizers.Metaspace()]
    settings = {"tokenizer_class": "AlbertTokenizer"} | settings
    with tempfile.TemporaryDirectory() as place:
        folder = pathlib.Path(place)
        albert_file(folder, words=pre_tokenizers.Sequence(words))
        for name, content in {"tokenizer_config": settings, "config": config("albert")}.items():
            (folder / f"{name}.json").write_text(json.dumps(content))
        assert_same_ids(folder, [text, *SPACES])


def test_t5_and_llama(tmp_path):
    t5 = transformers.T5Tokenizer(vocab=scored(["<pad>", "</s>", "<unk>"]), extra_ids=3)
    t5.save_pretrained(tmp_path / "t5")
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{n:02X}>" for n in range(256)), *PIECES, "th"]
    llama = transformers.LlamaTokenizer(
        vocab={piece: n for n, piece in enumerate(pieces)}, merges=[("t", "h")]
    )
    llama.add_tokens(["<e1>"])
    llama.save_pretrained(tmp_path / "llama")
    for name in ("t5", "llama"):
        (tmp_path / name / "config.json").write_text(json.dumps(config(name)))
        assert_same_ids(
            tmp_path / name, ["the thé</s> the <extra_id_0>the", " the", "", "ÿ <unk><s> <e1>x"]
        )


def test_whatever_transformers_saved(tmp_path):
    """Settings as transformers writes them next to tokenizer.json and without it."""
    contents = ADDED_TABLE["special by the map"]
    write(tmp_path, WORDS, config=config("bert"), **contents)
    transformers.BertTokenizer.from_pretrained(tmp_path).save_pretrained(tmp_path / "saved")
    write(tmp_path / "saved", config=config("bert"))
    assert_same_ids(tmp_path / "saved")


@pytest.mark.parametrize("words", ["cased", "Qwen2"])
def test_a_copy_has_the_class_of_config_json(tmp_path, words):
    source = tmp_path / "source"
    source.mkdir()
    if words == "cased":
        write(source, WORDS, tokenizer_config={"do_lower_case": False}, config=config("bert"))
        bert_backend(lowercase=True).save(str(source / "tokenizer.json"))
        text, want = "Cat cat", [WORDS.index("Cat"), WORDS.index("cat")]
        name = "BertTokenizer"
    else:
        write(source, config=config("qwen2"))
        text, want = "20", [BYTE_TOKENS.index("2"), BYTE_TOKENS.index("0")]
        name = "Qwen2Tokenizer"
    made = copy(source, tmp_path / "copy", "mpojax")
    assert made.encode_plain([text])[0] == want
    written = json.loads((tmp_path / "copy" / "tokenizer_config.json").read_text())
    assert written["tokenizer_class"] == name
    assert copy(tmp_path / "copy", tmp_path / "again", None).encode_plain([text])[0] == want
    theirs = getattr(transformers, name).from_pretrained(tmp_path / "copy")
    assert theirs(text, add_special_tokens=False)["input_ids"] == want


def test_a_copy_has_no_class_where_its_source_has_none(tmp_path):
    """A cased tokenizer.json alone, exported next to a BERT model, whose class would lower it."""
    source = tmp_path / "source"
    source.mkdir()
    write(source, tokenizer_config={"mask_token": "mask"})
    (source / "vocab.json").unlink()
    bert_backend(lowercase=False).save(str(source / "tokenizer.json"))
    made, theirs = copy(source, tmp_path / "copy", "bert"), tmp_path / "copy"
    theirs = transformers.AutoTokenizer.from_pretrained(theirs)
    first = data.Tokenizer.from_folder(source)
    for text in ("Cat mask cat", "Hello hello"):
        want = first.encode_plain([text])[0]
        assert made.encode_plain([text])[0] == want
        assert theirs(text, add_special_tokens=False)["input_ids"] == want


def test_a_copy_of_a_tokenizer_that_was_saved_here(tmp_path):
    """Beside Qwen2's config.json it stands as it was saved, and so does a copy."""
    write(tmp_path, config=config("qwen2"))
    data.Tokenizer(bert_backend(), "[PAD]", eos_token="the").save(tmp_path)
    assert_copies_alike(tmp_path)
    assert copy(tmp_path, tmp_path / "copy", "mpojax").encode_plain(["the"])[0] == [5]


@pytest.mark.parametrize("model_type", ["albert", "nezha", "bert"])
def test_a_copy_of_vocab_txt(tmp_path, model_type):
    """Of Chinese ALBERT models it is BERT's."""
    write(tmp_path, WORDS, config=config(model_type))
    assert_copies_alike(tmp_path)


@pytest.mark.parametrize("model_type", ["openai-gpt", "albert"])
def test_a_copy_whose_class_would_be_lost(tmp_path, model_type):
    write(tmp_path, config=config(model_type))
    for target in ("mpojax", "llama", None):
        with pytest.raises(ValueError, match=f"{model_type}' is not known here.*tokenizer_class"):
            tokenizer_folders.copies(tmp_path, target)
    assert tokenizer_folders.copies(tmp_path, model_type).keys() == {"vocab.json", "merges.txt"}
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    assert_copies_alike(tmp_path)


def run_advice(error, folder):
    """Follows the advice of a message word for word, in another folder."""
    command = str(error.value)[str(error.value).index("python -c ") :]
    name, *arguments = shlex.split(command)
    assert name == "python"
    subprocess.run([sys.executable, *arguments], check=True, cwd=folder, capture_output=True)


def test_class_that_is_not_rebuilt(tmp_path):
    place = tmp_path / "it's a folder"
    place.mkdir()
    tokens = ["h", "e", "h</w>", "e</w>", "he</w>", "<|startoftext|>", "<|endoftext|>"]
    write(place, tokenizer_config={"tokenizer_class": "CLIPTokenizerFast"})
    (place / "vocab.json").write_text(json.dumps({each: n for n, each in enumerate(tokens)}))
    (place / "merges.txt").write_text("#version: 0.2\nh e</w>\n")
    with pytest.raises(
        ValueError, match=r"has a CLIPTokenizer, which is not rebuilt from"
    ) as error:
        data.Tokenizer.from_folder(place)
    run_advice(error, tmp_path)
    theirs = transformers.CLIPTokenizer.from_pretrained(place)("he HE<|endoftext|>")["input_ids"]
    assert (
        data.Tokenizer.from_folder(place)
        .encode(["he HE<|endoftext|>"], max_length=9)["input_ids"][0][: len(theirs)]
        .tolist()
        == theirs
    )


def test_classes_without_a_fast_form(tmp_path):
    write(tmp_path, WORDS, tokenizer_config={"tokenizer_class": "BertJapaneseTokenizer"})
    with pytest.raises(ValueError, match=r"BertJapaneseTokenizer.*has no fast form of this class"):
        data.Tokenizer.from_folder(tmp_path)


def test_files_that_the_class_is_not_built_from(tmp_path):
    write(tmp_path, WORDS, tokenizer_config={"tokenizer_class": "GPT2Tokenizer"})
    with pytest.raises(FileNotFoundError, match=r"is built from vocab\.json \+ merges\.txt or"):
        data.Tokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizerFast"}')
    with pytest.raises(ValueError, match=r"LlamaTokenizer, which is not rebuilt from vocab\.txt;"):
        data.Tokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "TokenizersBackend"}')
    with pytest.raises(ValueError, match=r"it needs tokenizer\.json, which is missing"):
        data.Tokenizer.from_folder(tmp_path)


def test_byte_level_files_of_an_unknown_model(tmp_path):
    write(tmp_path, config=config("openai-gpt"))
    with pytest.raises(ValueError, match=r"a tokenizer of model_type 'openai-gpt', which is not"):
        data.Tokenizer.from_folder(tmp_path)


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ({"added_tokens": {"<e1>": NEXT + 7}}, rf"'<e1>' has id {NEXT}, not {NEXT + 7}"),
        ({"added_tokens": {"the": 0}}, r"'the' has id 5, not 0"),
        ({"special_tokens_map": {"mask_token": "<m>"}}, r"mask_token names '<m>', which has no id"),
        ({"tokenizer_config": {"additional_special_tokens": ["<m>"]}}, r"names '<m>', which has"),
        ({"tokenizer_config": {"cls_token": "<m>"}}, r"lacks the special tokens \['<m>'\]"),
        ({"tokenizer_config": {"cls_token": None}}, r"lacks the special tokens \['\[CLS\]'\]"),
    ],
)
def test_tokens_without_their_id(tmp_path, contents, message):
    write(tmp_path, WORDS, **contents)
    with pytest.raises(ValueError, match=message):
        data.Tokenizer.from_folder(tmp_path)


def test_classes_and_models_as_transformers_has_them():
    from transformers.models.auto import tokenization_auto

    for name, kind in classes.KINDS.items():
        (base,) = (
            base
            for base in ("BertTokenizer", "GPT2Tokenizer", "RobertaTokenizer", "Qwen2Tokenizer")
            if classes.KINDS[base] is kind
        )
        assert issubclass(getattr(transformers, name), getattr(transformers, base))
    for model, name in tokenizer_folders.CLASS_OF_MODEL.items():
        assert tokenization_auto.TOKENIZER_MAPPING_NAMES[model] == name
    for name in classes.WITHOUT_TOKENIZER_JSON:
        theirs = getattr(transformers, name)
        assert not issubclass(theirs, transformers.PreTrainedTokenizerFast)


def test_saved_tokenizers_keep_their_ids(tmp_path):
    """A token that is named in the configuration alone is text, as it was when it was saved."""
    backend = tokenizers.Tokenizer(
        models.BPE({each: n for n, each in enumerate(BYTE_TOKENS)}, MERGES)
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    first = data.Tokenizer(backend, "a", bos_token="h", eos_token="<s>")
    first.save(tmp_path)
    assert json.loads((tmp_path / "tokenizer_config.json").read_text()) == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": "a",
        "bos_token": "h",
        "eos_token": "<s>",
    }
    again = data.Tokenizer.from_folder(tmp_path)
    for text in TEXTS:
        ids = [t.encode([text], max_length=99)["input_ids"].tolist() for t in (first, again)]
        assert ids[0] == ids[1]
