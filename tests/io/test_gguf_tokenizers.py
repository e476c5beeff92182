"""Tokenizers of GGUF files: small ones written here, and the real one of SmolLM2."""

import json

import pytest
import tokenizers

from mpojax import data, io
from tests.io import gguf_helpers
from tests.io.gguf_helpers import TOKENS, write_with_tokenizer


def test_tokenizer(tmp_path):
    path = write_with_tokenizer(tmp_path / "small.gguf", "gpt2", "gpt-2")
    backend = io.gguf_tokenizer(path)
    encoding = backend.encode("hello he<|end|>")
    assert encoding.tokens == ["hel", "l", "o", "Ġ", "he", "<|end|>"]
    assert backend.decode(encoding.ids, skip_special_tokens=False) == "hello he<|end|>"
    text = "Grüße, 12 \n\n  Дом 家 🙂"
    assert backend.decode(backend.encode(text).ids) == text


@pytest.mark.parametrize(
    ("cut", "pieces"),
    [
        ("gpt-2", [["he", "hel"], ["Ġ", "1", "2"]]),
        ("smollm", [["he", "hel"], ["Ġ"], ["1"], ["2"]]),
        ("llama-bpe", [["he", "hel"], ["Ġ"], ["1", "2"]]),
    ],
)
def test_how_texts_are_cut(tmp_path, cut, pieces):
    backend = io.gguf_tokenizer(write_with_tokenizer(tmp_path / "small.gguf", cut=cut))
    cuts = backend.pre_tokenizer.pre_tokenize_str("hehel 12")
    assert [text for text, _ in cuts] == ["".join(piece) for piece in pieces]
    assert backend.encode("hehel 12").tokens == [t for piece in pieces for t in piece]


def test_ends_of_a_text(tmp_path):
    end = TOKENS.index("<|end|>")
    ends = {"bos_token_id": end, "add_bos_token": True, "add_eos_token": True}
    backend = io.gguf_tokenizer(write_with_tokenizer(tmp_path / "small.gguf", **ends))
    assert backend.encode("he").tokens == ["<|end|>", "he", "<|end|>"]
    assert backend.encode("he", add_special_tokens=False).tokens == ["he"]
    # Texts of LLaMA 3 begin with the first token although files do not say so.
    path = write_with_tokenizer(tmp_path / "other.gguf", cut="llama-bpe", bos_token_id=end)
    assert io.gguf_tokenizer(path).encode("he").tokens == ["<|end|>", "he"]


@pytest.mark.parametrize(("kind", "cut"), [("llama", "default"), ("gpt2", "deepseek-llm")])
def test_tokenizers_that_cannot_be_rebuilt(tmp_path, kind, cut):
    path = write_with_tokenizer(tmp_path / "small.gguf", kind, cut)
    with pytest.raises(ValueError, match=f"model '{kind}' with pre-tokenizer '{cut}'.*exactly"):
        io.gguf_tokenizer(path)


def test_written_tokenizers_are_read_by_the_data_side(tmp_path):
    path = write_with_tokenizer(tmp_path / "small.gguf", pad_token_id=TOKENS.index("<|pad|>"))
    io.write_gguf_tokenizer(path, tmp_path / "tokenizer")
    tokenizer = data.Tokenizer.from_folder(tmp_path / "tokenizer")
    assert (tokenizer.pad_token, tokenizer.eos_token) == ("<|pad|>", "<|end|>")
    backend = io.gguf_tokenizer(path)
    assert tokenizer.encode_plain(["hello"]) == [backend.encode("hello").ids]
    model = io.load_pretrained(path)
    io.export_huggingface(model, tmp_path / "out", tokenizer_from=tmp_path / "tokenizer")
    content = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    assert content["model_type"] == "llama"
    assert (tmp_path / "out" / "tokenizer.json").is_file()


def test_the_real_tokenizer(tmp_path):
    io.write_gguf_tokenizer(gguf_helpers.smollm2(), tmp_path)
    tokenizer = data.Tokenizer.from_folder(tmp_path)
    assert tokenizer.vocab_size == 49_152
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")
    backend = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    text = "In 1984, it didn't cost $1,250.\n\n\tnaïve café — 東京 🙂<|im_end|>"
    ids = backend.encode(text).ids
    assert ids[-1] == 2
    assert backend.decode(ids, skip_special_tokens=False) == text
    assert backend.encode("1984 didn't").tokens == ["1", "9", "8", "4", "Ġdidn", "'t"]
