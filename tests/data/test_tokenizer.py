"""Tokenizers of language models: byte-level BPE, special tokens, text that comes back whole."""

import json
import os
import pathlib
import subprocess
import sys

import hypothesis
import numpy as np
import pytest
import tokenizers
from hypothesis import strategies as st

from mpojax import data
from mpojax.data.tokenizers import loading, vocabulary

BYTES = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())


def byte_level_files(folder, names=("vocab.json", "merges.txt"), special=("<|endoftext|>",)):
    """The bytes, then "he", "Ġhe" and the special tokens."""
    tokens = [*BYTES, "he", "Ġhe", *special]
    numbered = {token: number for number, token in enumerate(tokens)}
    (folder / names[0]).write_text(json.dumps(numbered), encoding="utf-8")
    (folder / names[1]).write_text("#version: 0.2\nh e\nĠ he\n", encoding="utf-8")
    return numbered


@pytest.fixture(scope="session")
def gpt2() -> data.Tokenizer:
    folder = os.environ.get("MPOJAX_GPT2_BPE")
    if not folder or not pathlib.Path(folder).is_dir():
        pytest.skip("GPT-2's vocabulary is not at hand (set MPOJAX_GPT2_BPE to its folder)")
    return data.Tokenizer.from_folder(folder)


@pytest.mark.parametrize("names", loading.BYTE_LEVEL_FILES)
def test_byte_level_files(tmp_path, names):
    numbered = byte_level_files(tmp_path, names)
    tokenizer = data.Tokenizer.from_folder(tmp_path)
    he, space_he, end = 256, 257, 258
    assert tokenizer.encode_plain(["he he x", ""]) == [
        [he, space_he, numbered["Ġ"], numbered["x"]],
        [],
    ]
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (end, end, end)
    assert tokenizer.encode_plain(["<|endoftext|>"])[0] != [end]
    encoded = tokenizer.encode(["he<|endoftext|>", "he he he"], max_length=3)
    np.testing.assert_array_equal(encoded["input_ids"], [[he, end, end], [he, space_he, space_he]])
    np.testing.assert_array_equal(encoded["attention_mask"], [[1, 1, 0], [1, 1, 1]])


def test_prefix_space(tmp_path):
    byte_level_files(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"add_prefix_space": true}')
    assert data.Tokenizer.from_folder(tmp_path).encode_plain(["he"]) == [[257]]


def test_roberta_puts_tokens_around_texts(tmp_path):
    byte_level_files(tmp_path, special=("<s>", "<pad>", "</s>"))
    tokenizer = data.Tokenizer.from_folder(tmp_path)
    encoded = tokenizer.encode(["he"], ["he"], max_length=7)["input_ids"]
    np.testing.assert_array_equal(encoded, [[258, 256, 260, 260, 256, 260, 259]])
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (258, 260, 259)


def test_special_tokens_of_the_settings(tmp_path):
    byte_level_files(tmp_path, special=("<|endoftext|>", "<stop>"))
    (tmp_path / "special_tokens_map.json").write_text('{"eos_token": "x", "pad_token": "y"}')
    (tmp_path / "tokenizer_config.json").write_text(
        '{"eos_token": {"content": "<stop>"}, "bos_token": null}'
    )
    tokenizer = data.Tokenizer.from_folder(tmp_path)
    assert (tokenizer.bos_id, tokenizer.eos_id) == (None, 259)
    assert tokenizer.pad_token == "y"
    assert data.Tokenizer.from_folder(tmp_path, "<stop>").pad_id == 259


def test_bert_has_no_end_of_text(tmp_path):
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\na\n")
    tokenizer = data.Tokenizer.from_folder(tmp_path)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (None, None, 0)


def unigram(special, bos=None, eos=None):
    """A SentencePiece-like tokenizer.json in the manner of T5 and LLaMA."""
    pieces = [*((token, 0.0) for token in special), ("▁he", -1.0), ("▁", -2.0), ("x", -3.0)]
    backend = tokenizers.Tokenizer(tokenizers.models.Unigram(pieces, unk_id=special.index("<unk>")))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    backend.decoder = tokenizers.decoders.Metaspace()
    backend.add_special_tokens(list(special))
    single = [token for token in (bos, "$A", eos) if token]
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single=single, special_tokens=[(t, special.index(t)) for t in (bos, eos) if t]
    )
    return backend


def test_tokenizer_file_in_t5_manner(tmp_path):
    unigram(("<pad>", "</s>", "<unk>"), eos="</s>").save(str(tmp_path / "tokenizer.json"))
    tokenizer = data.Tokenizer.from_folder(tmp_path)
    assert (tokenizer.pad_id, tokenizer.eos_id, tokenizer.bos_id) == (0, 1, None)
    assert tokenizer.encode_plain(["he xhe"]) == [[3, 4, 5, 2]]
    np.testing.assert_array_equal(tokenizer.encode(["he"], max_length=3)["input_ids"], [[3, 1, 0]])
    assert tokenizer.decode([3, 4, 5, 1, 0]) == "he x"


def test_tokenizer_file_in_llama_manner(tmp_path):
    unigram(("<unk>", "<s>", "</s>"), bos="<s>").save(str(tmp_path / "tokenizer.json"))
    tokenizer = data.Tokenizer.from_folder(tmp_path)
    assert (tokenizer.pad_id, tokenizer.eos_id, tokenizer.bos_id) == (2, 2, 1)
    np.testing.assert_array_equal(tokenizer.encode(["he"], max_length=3)["input_ids"], [[1, 3, 2]])
    assert tokenizer.encode_plain(["he"]) == [[3]]


def test_save(tmp_path):
    byte_level_files(tmp_path)
    first = data.Tokenizer.from_folder(tmp_path)
    first.encode(["he"], max_length=2)  # lengths of a call are not saved
    first.save(tmp_path / "new" / "folder")
    again = data.Tokenizer.from_folder(tmp_path / "new" / "folder")
    assert again.encode_plain(["he he he <|endoftext|>"]) == first.encode_plain(
        ["he he he <|endoftext|>"]
    )
    assert (again.pad_id, again.bos_id, again.eos_id) == (258, 258, 258)
    assert again.encode(["he he he"], max_length=5)["attention_mask"].sum() == 3


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("vocab.json", "{", r"vocab\.json is not valid JSON"),
        ("vocab.json", "[1]", "must hold one JSON object"),
        ("vocab.json", '{"a": "b"}', "is not a vocabulary: expected an object like"),
        ("merges.txt", "#version\nh e l", r"merges\.txt, line 2: 'h e l' is not a pair of tokens"),
        ("merges.txt", "he x", "the merges do not fit the vocabulary: .*hex"),
        ("tokenizer_config.json", "[", r"tokenizer_config\.json is not valid JSON"),
        ("tokenizer_config.json", '{"eos_token": "!!"}', r"no token '!!'; pass eos_token="),
    ],
)
def test_broken_files(tmp_path, name, content, message):
    byte_level_files(tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        data.Tokenizer.from_folder(tmp_path)


def test_nothing_to_read(tmp_path):
    (tmp_path / "vocab.json").write_text("{}")  # without its merges
    with pytest.raises(FileNotFoundError, match=r"no vocab\.json \+ merges\.txt"):
        data.Tokenizer.from_folder(tmp_path)
    (tmp_path / "spiece.model").write_text("")
    with pytest.raises(
        ValueError, match=r"spiece\.model is a SentencePiece model.*tokenizer\.json"
    ):
        data.Tokenizer.from_folder(tmp_path)


TEXTS = ("the river under the bridge, the rivers; ", "the bridges — é 中文 under the river\n") * 5


@pytest.fixture(scope="module")
def trained() -> data.Tokenizer:
    return data.train_bpe(TEXTS, 280)


class TestTrainedBytePairs:
    def test_ids(self, trained):
        tokens = sorted(trained.vocabulary().items(), key=lambda item: item[1])
        assert [number for _, number in tokens] == list(range(280))
        assert [token for token, _ in tokens[:3]] == ["<pad>", "<bos>", "<eos>"]
        assert sorted(token for token, _ in tokens[3:259]) == BYTES
        assert (trained.pad_id, trained.bos_id, trained.eos_id) == (0, 1, 2)
        assert "Ġthe" in trained.vocabulary()

    @hypothesis.given(st.text(max_size=60))
    def test_any_text_comes_back(self, trained, text):
        (ids,) = trained.encode_plain([text])
        assert trained.decode(ids) == text
        assert min(ids, default=3) > 2

    def test_names_of_special_tokens_are_text(self, trained):
        (ids,) = trained.encode_plain(["<eos>"])
        assert trained.decode(ids) == "<eos>"
        assert trained.decode([1, *ids, 2, 0]) == "<eos>"

    def test_saved_folder(self, trained, tmp_path):
        trained.save(tmp_path)
        again = data.Tokenizer.from_folder(tmp_path)
        assert again.vocabulary() == trained.vocabulary()
        assert (again.pad_id, again.bos_id, again.eos_id) == (0, 1, 2)
        assert again.encode_plain(TEXTS) == trained.encode_plain(TEXTS)
        np.testing.assert_array_equal(again.encode(["t"], max_length=2)["attention_mask"], [[1, 0]])

    def test_too_small(self):
        with pytest.raises(ValueError, match="vocab_size=259 must be above 259: 3 special tokens"):
            vocabulary.train_bpe(["x"], 259)

    def test_same_text_same_vocabulary(self, capsys):
        """In two processes, this one and another, which hash strings in other ways."""
        program = """
import random
from mpojax import data
draw = random.Random(0)
words = ["".join(draw.choices("abcdefghijklmnopqrst", k=draw.randint(2, 8))) for _ in range(900)]
texts = [" ".join(draw.choices(words, k=12)) + " é ü 中文 €uro!" for _ in range(150)]
print(data.train_bpe(texts, 500)._backend.to_str())
"""
        run = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True
        )
        exec(program, {})
        assert capsys.readouterr().out == run.stdout


class TestRealVocabulary:
    def test_known_ids(self, gpt2):
        assert gpt2.encode_plain(["Hello world"]) == [[15496, 995]]
        assert (gpt2.vocab_size, gpt2.eos_id, gpt2.bos_id) == (50257, 50256, 50256)

    @hypothesis.given(st.text(max_size=60))
    def test_any_text_comes_back(self, gpt2, text):
        assert gpt2.decode(gpt2.encode_plain([text])[0]) == text

    def test_as_transformers(self, gpt2, tmp_path, data_dir):
        transformers = pytest.importorskip("transformers")
        folder = pathlib.Path(os.environ["MPOJAX_GPT2_BPE"])
        (tmp_path / "vocab.json").write_bytes((folder / "encoder.json").read_bytes())
        (tmp_path / "merges.txt").write_bytes((folder / "vocab.bpe").read_bytes())
        theirs = transformers.GPT2Tokenizer.from_pretrained(tmp_path)
        text = (data_dir / "wikitext-2" / "valid.txt").read_text(encoding="utf-8")[:20000]
        assert gpt2.encode_plain([text])[0] == theirs(text)["input_ids"]
