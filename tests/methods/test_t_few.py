"""Choices of texts: their arrays, likelihoods and losses, against loops over tokens."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from mpojax import data, models
from mpojax.methods import t_few

SIZES = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "intermediate_size": 24}
log_likelihoods = jax.jit(t_few.log_likelihoods)
WORDS = "is it good or bad yes no film plot a the"


@pytest.fixture(scope="module")
def tokenizer():
    return data.train_bpe([WORDS] * 3, 280)


@pytest.fixture(scope="module", params=["decoder", "encoder_decoder"])
def model(request, tokenizer):
    kind = models.DecoderConfig if request.param == "decoder" else models.EncoderDecoderConfig
    more = {"head_size": 8} if request.param == "encoder_decoder" else {"max_positions": 64}
    config = kind(vocab_size=len(tokenizer.vocabulary()), dropout=0.0, **SIZES, **more)
    return models.build(config, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def batch(model, tokenizer):
    with_source = isinstance(model, models.LanguageModel)
    sources = ["is it good", "film", "a bad plot or the film"]
    choices = [["yes", "no it is bad"]] * 3
    labels = np.array([1, 0, 1], np.int32)
    return t_few.encode(sources, choices, labels, tokenizer, max_length=32, with_source=with_source)


def test_arrays_hold_the_texts(model, batch, tokenizer):
    ids, weights = batch["choice_ids"][2, 1], batch["choice_weights"][2, 1] == 1
    chosen = tokenizer.decode(ids[weights])
    assert chosen.strip() == "no it is bad"
    real = tokenizer.decode(ids[batch["choice_mask"][2, 1] == 1])
    if isinstance(model, models.LanguageModel):
        assert real == "a bad plot or the film no it is bad"
    else:
        assert ids[weights][-1] == tokenizer.eos_id
        assert batch["input_ids"][1][batch["attention_mask"][1] == 1][-1] == tokenizer.eos_id


@jax.jit
def call(model, *inputs):
    return model(*inputs)


def likelihoods(model, batch, row, choice):
    """log p of the tokens of one choice, alone, without padding."""
    real = batch["choice_mask"][row, choice] == 1
    ids = batch["choice_ids"][row, choice][real][None]
    if isinstance(model, models.LanguageModel):
        logits, targets = call(model, ids)[0][:-1], ids[0, 1:]
    else:
        source = batch["input_ids"][row][batch["attention_mask"][row] == 1]
        start = np.full((1, 1), model.config.decoder_start_id, ids.dtype)
        shifted = np.concatenate([start, ids[:, :-1]], axis=1)
        logits, targets = call(model, source[None], None, shifted)[0], ids[0]
    logits = np.asarray(logits, np.float64)
    found = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    found = found[np.arange(len(targets)), targets]
    return found[-int(batch["choice_weights"][row, choice].sum()) :]


def test_losses_are_those_of_a_loop(model, batch):
    rows = [[likelihoods(model, batch, row, c) for c in (0, 1)] for row in range(3)]
    labels = batch["labels"]
    right = np.concatenate([rows[i][label] for i, label in enumerate(labels)])
    wrong = np.concatenate([rows[i][1 - label] for i, label in enumerate(labels)])
    beta = np.array([[each.mean() for each in row] for row in rows])
    normalised = np.log(np.exp(beta).sum(1)) - beta[np.arange(3), labels]
    expected = {
        "lm_loss": -right.mean(),
        "normalised_loss": normalised.mean(),
        "unlikelihood_loss": -np.log(1 - np.exp(wrong) + 0.01).mean(),
    }
    settings = t_few.ChoiceSettings(normalised_weight=2.0, unlikelihood_weight=0.5)
    total, metrics = jax.jit(t_few.choice_loss(settings))(model, batch, None)
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-4)
    whole = sum(w * v for w, v in zip((1.0, 2.0, 0.5), expected.values(), strict=True))
    np.testing.assert_allclose(total, whole, rtol=1e-4)
    plain = [[each.sum() for each in row] for row in rows]
    found = t_few.scores(*log_likelihoods(model, batch), 0.0)
    np.testing.assert_allclose(found, plain, rtol=1e-4)


def test_micro_batches_add_up_to_the_batch(model, batch):
    """Also where right choices differ in length, as here."""
    loss = jax.jit(t_few.choice_loss(t_few.ChoiceSettings()))
    whole, metrics = loss(model, batch, None)
    totals = {f"{n}_total": np.float32(a.sum() / 3) for n, a in batch.items() if "weights" in n}
    parts = [{n: a[k : k + 1] for n, a in batch.items()} | totals for k in range(3)]
    found = [loss(model, part, None) for part in parts]
    np.testing.assert_allclose(np.mean([total for total, _ in found]), whole, rtol=1e-5)
    for name, value in metrics.items():
        np.testing.assert_allclose(np.mean([each[name] for _, each in found]), value, rtol=1e-5)


@pytest.mark.parametrize("length_norm", [0.0, 1.0])
def test_the_best_choice_is_the_answer(model, batch, length_norm):
    beta = t_few.scores(*log_likelihoods(model, batch), length_norm)
    expected = np.mean(np.argmax(beta, axis=1) == batch["labels"])
    found = t_few.evaluator(("accuracy",), length_norm)(model, data.EvalData(batch, 8))
    assert found == {"accuracy": expected}


def test_a_decoders_source_loses_its_beginning(tokenizer):
    made = t_few.encode(["film " * 20 + "good"], [["yes", "no"]], None, tokenizer, max_length=6)
    assert made["input_ids"].shape[1] == 6
    assert tokenizer.decode(made["input_ids"][0, :-1]).endswith("good")
    with pytest.raises(ValueError, match="max_length=2 is too short for the longest"):
        t_few.encode(["film"], [["yes it is"]], None, tokenizer, max_length=2)
    with pytest.raises(ValueError, match=r"sources\[1\]='' has no token"):
        t_few.encode(["film", ""], [["yes"]] * 2, None, tokenizer, with_source=True)


TASK = data.from_arrays("mood", {"train": (["good", "bad"], ["yes", "no"])})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"names": ("yes",)}, "config.choices.names=.* must be 2 different texts"),
        ({"names": ("yes", "yes")}, "must be 2 different texts"),
        ({"template": "no field"}, "config.choices.template='no field' must be a text with"),
        ({"template": "{text} {other}"}, "must be a text with {text}"),
        ({"template": "{text} {pair}"}, "config.choices.template=.* must not have {pair}"),
        ({"length_norm": -1.0}, "config.choices.length_norm=-1.0 must be"),
        (dict.fromkeys(("lm_weight", "normalised_weight", "unlikelihood_weight"), 0.0), "all wei"),
    ],
)
def test_bad_input(fields, message):
    def read():
        settings = t_few.ChoiceSettings(**fields)
        return settings.texts_of(TASK), settings.sources(TASK["train"])

    with pytest.raises(ValueError, match=message):
        read()


def test_texts_of_a_task():
    settings = t_few.ChoiceSettings(template="{text}?")
    assert settings.texts_of(TASK) == ("no", "yes")
    assert settings.sources(TASK["train"]) == ["good?", "bad?"]
    with pytest.raises(ValueError, match="only classes are chosen from"):
        settings.texts_of(dataclasses.replace(TASK, kind="regression", label_names=(), metrics=()))
