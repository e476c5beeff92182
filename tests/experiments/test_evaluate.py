"""Evaluation of models as they are, from the command line's settings to its files."""

import dataclasses
import json

import numpy as np
import pytest
from flax import nnx

import mpojax as mj
from experiments import evaluate
from mpojax import data, io, models
from tests.experiments import toy_language
from tests.io import gguf_helpers

QUICK = {"new_tokens": 3, "rounds": 1, "window": 16, "prompt_length": 4}


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    return toy_language.write(tmp_path_factory.mktemp("texts"))


@pytest.fixture(scope="module")
def decoder(texts):
    """A random decoder with its tokenizer, in three forms of folders."""
    vocabulary = data.Tokenizer.from_folder(texts / "words").vocab_size
    config = models.DecoderConfig(vocabulary, **toy_language.DECODER | {"max_positions": 64})
    model = models.build(config, rngs=nnx.Rngs(0))
    small, _ = mj.compress(model, bond=4)
    mj.save(model, texts / "dense", tokenizer_from=texts / "words")
    mj.save(model, texts / "hub", format="huggingface", tokenizer_from=texts / "words")
    mj.save(small, texts / "small", tokenizer_from=texts / "words")
    return model


def measured(folder=None, **settings):
    return evaluate.run(evaluate.Evaluation(**QUICK | settings), folder)


@pytest.mark.parametrize("form", ["dense", "hub", "small"])
def test_a_decoder(decoder, texts, form, tmp_path, capsys):
    found = measured(
        str(tmp_path / "run"), model=str(texts / form), texts="test.txt", data_dir=str(texts)
    )
    tokenizer = data.Tokenizer.from_folder(texts / "words")
    stream = data.TokenStream.from_files([texts / "test.txt"], tokenizer)
    expected = models.perplexity(io.load_pretrained(texts / form), stream.tokens, window=16)
    assert found["perplexity"]["value"] == pytest.approx(expected.value, rel=1e-5)
    per_word = expected.nats_per_token * len(stream) / stream.num_words
    assert found["perplexity"]["per_word"] == pytest.approx(np.exp(per_word), rel=1e-5)
    assert min(found["speed"][f"{part}_tokens_per_second"] for part in ("prefill", "decode")) > 0
    assert found["samples"][0]["how"] == "greedy"
    printed = capsys.readouterr().out
    report = (tmp_path / "run" / "report.md").read_text(encoding="utf-8")
    for line in ("perplexity per word", "decode tokens/s", "temperature 0.7, top_p 0.95"):
        assert line in printed
        assert line in report
    assert json.loads((tmp_path / "run" / "result.json").read_text()) == found


def test_a_finished_folder_is_shown_and_no_other_evaluation_takes_it(
    decoder, texts, tmp_path, monkeypatch
):
    settings = {"model": str(texts / "dense"), "rounds": 0}
    found = measured(str(tmp_path), **settings)
    assert "speed" not in found
    assert "perplexity" not in found
    monkeypatch.setattr(evaluate, "load", None)
    assert measured(str(tmp_path), **settings) == found
    with pytest.raises(ValueError, match="new_tokens"):
        measured(str(tmp_path), **settings, new_tokens=4)


def test_gguf_and_named_texts(tmp_path):
    (tmp_path / "wikitext-2").mkdir()
    (tmp_path / "wikitext-2" / "test.txt").write_text("hello hello he said " * 9, encoding="utf-8")
    config = dataclasses.replace(gguf_helpers.CONFIG, vocab_size=len(gguf_helpers.TOKENS))
    file = gguf_helpers.write_with_tokenizer(tmp_path / "a.gguf", config=config)
    settings = {"texts": "wikitext2", "data_dir": str(tmp_path), "window": 8, "num_windows": 2}
    found = measured(model=str(file), **settings, stride=20, rounds=0)
    assert (found["perplexity"]["num_windows"], found["perplexity"]["num_tokens"]) == (2, 14)


def test_chat(decoder, texts, tmp_path):
    mj.save(decoder, tmp_path / "chat", tokenizer_from=texts / "words")
    (tmp_path / "chat" / "chat_template.jinja").write_text("{{ messages[0].content }}, and")
    found, plain = (
        measured(model=str(tmp_path / "chat"), prompt="the river", rounds=0, **more)
        for more in ({}, {"chat": False})
    )
    assert [sample["chat"] for sample in found["samples"] + plain["samples"]] == [True] * 2 + [
        False
    ] * 2
    tokenizer = data.Tokenizer.from_folder(texts / "words")
    made = models.generate(
        decoder,
        [tokenizer.encode_prompt("the river, and")],
        max_new_tokens=3,
        sampling=models.Sampling(),
    )
    assert found["samples"][0]["text"] == tokenizer.decode(made.ids[0])


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A classifier of one word, right for "good" and "bad" alone, and its task."""
    folder = tmp_path_factory.mktemp("classifier")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "bad"]
    config = models.EncoderConfig(
        vocab_size=8,
        hidden_size=16,
        num_layers=1,
        num_heads=2,
        intermediate_size=16,
        max_positions=16,
    )
    encoder = models.build(config, rngs=nnx.Rngs(0))
    mj.save(encoder, folder / "encoder")
    model = models.with_head(encoder, 2, label_names=("no", "yes"), rngs=nnx.Rngs(1))
    mj.save(model, folder / "model")
    for name in ("encoder", "model"):
        (folder / name / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
        kind = {"tokenizer_class": "BertTokenizer"}
        (folder / name / "tokenizer_config.json").write_text(json.dumps(kind), encoding="utf-8")
    lines = ["text\tlabel", *["good\tyes", "bad\tno", "bad bad\tno"] * 3]
    (folder / "dev.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


TASK = "file:dev=dev.tsv;metric=accuracy,f1"


def test_a_classifier(classifier):
    settings = {"model": str(classifier / "model"), "data_dir": str(classifier), "task": TASK}
    found = measured(**settings, batch_size=8, max_length=8)
    model = io.load_pretrained(classifier / "model")
    tokenizer = data.Tokenizer.from_folder(classifier / "model")
    tokens = tokenizer.encode(["good", "bad", "bad bad"], max_length=8)
    predicted = np.argmax(np.asarray(model(**tokens)), -1)
    assert found["task"]["accuracy"] == pytest.approx(np.mean(predicted == [1, 0, 0]))
    assert (found["task"]["examples"], found["task"]["split"]) == (9, "dev")
    assert found["speed"]["decode_tokens_per_second"] is None
    assert "samples" not in found
    assert measured(**settings, rounds=0, examples=2)["task"]["examples"] == 2


@pytest.mark.parametrize("head", ["classifier", "none"])
def test_a_decoder_without_logits_is_timed_by_its_forward_pass(classifier, tmp_path, head):
    labels = ("no", "yes") if head == "classifier" else ()
    sizes = toy_language.DECODER | {"head": head, "max_positions": 64}
    config = models.DecoderConfig(8, **sizes, num_labels=len(labels) or None)
    model = models.build(config.with_label_names(labels), rngs=nnx.Rngs(0))
    mj.save(model, tmp_path / "model", tokenizer_from=classifier / "model")
    task = {"task": TASK, "data_dir": str(classifier), "max_length": 8} if labels else {}
    found = measured(model=str(tmp_path / "model"), **task)
    assert found["speed"]["prefill_tokens_per_second"] > 0
    assert found["speed"]["decode_tokens_per_second"] is None
    assert ("task" in found) == bool(task)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "model", "texts": "dev.tsv"}, "--texts: perplexity needs a decoder"),
        ({"model": "encoder", "task": TASK}, "this Encoder has no head for a task; tune one"),
        (
            {"model": "model", "task": "file:dev=dev.tsv;labels=no,yes,maybe"},
            "the head of the model is for no, yes, the task has no, yes, maybe",
        ),
        ({"model": "nothing"}, "there is no folder"),
        ({"model": "model", "window": 1}, "--window=1 must be an integer of at least 2"),
    ],
)
def test_bad_input_of_encoders(classifier, settings, message):
    settings = settings | {"model": str(classifier / settings["model"]), "rounds": 0}
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        measured(**settings, data_dir=str(classifier))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"texts": "test.txt", "window": 2000}, "longer than max_positions=64"),
        ({"texts": "nothing"}, "no texts 'nothing'"),
        ({"texts": "short.txt"}, "fewer than one window=16: give more text"),
        ({"task": TASK}, "this LanguageModel has no head for a task"),
        ({"chat": True}, "--chat: the tokenizer of .* has no chat template"),
        ({"tokenizer": "large"}, "does not fit; give the one that was saved with"),
    ],
)
def test_bad_input_of_decoders(decoder, texts, settings, message):
    (texts / "short.txt").write_text("the river", encoding="utf-8")
    (texts / "dev.tsv").write_text("text\tlabel\na\tb\nc\td\n", encoding="utf-8")
    if "tokenizer" in settings:
        data.train_bpe([(texts / "train.txt").read_text() + "äöüß" * 99], 400).save(texts / "large")
        settings = {"tokenizer": str(texts / "large")}
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        measured(model=str(texts / "dense"), data_dir=str(texts), rounds=0, **settings)


def test_compiled_programs(decoder, texts, tmp_path):
    pytest.importorskip("flatbuffers")
    measured(model=str(texts / "dense"), rounds=0, serving=str(tmp_path / "served"))
    told = json.loads((tmp_path / "served" / "serving.json").read_text())
    assert (told["length"], told["max_new_tokens"]) == (4, 3)
