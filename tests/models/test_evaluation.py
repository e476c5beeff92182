"""Perplexity, scores of tokens and speed of decoders, against plain loops."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from mpojax import models
from mpojax.models import evaluation
from tests.models import small, small_language

DECODERS = small_language.DECODERS
TEXT = np.random.default_rng(0).integers(4, 50, 75)


def plain_nats(model, ids) -> np.ndarray:
    """-log p of all tokens but the first, from the logits of the whole row."""
    logits = np.asarray(model(jnp.asarray(ids)[None]), np.float64)[0, :-1]
    logits -= logits.max(-1, keepdims=True)
    logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
    return -logits[np.arange(len(ids) - 1), ids[1:]]


@pytest.mark.parametrize("kind", DECODERS)
@pytest.mark.parametrize("make", [small_language.dense, small_language.chains])
def test_disjoint_windows(kind, make):
    model = make(DECODERS[kind])
    found = models.perplexity(model, TEXT, window=16, batch_size=3)
    expected = np.concatenate([plain_nats(model, TEXT[k : k + 16]) for k in range(0, 64, 16)])
    assert (found.num_windows, found.num_tokens) == (4, 60)
    np.testing.assert_allclose(found.nats, expected.sum(), rtol=1e-5)
    np.testing.assert_allclose(found.value, np.exp(expected.mean()), rtol=1e-5)
    assert found.per_word(30) == pytest.approx(found.value**2)


@pytest.mark.parametrize("stride", [1, 5, 15])
def test_overlapping_windows_predict_every_token_once(stride):
    model = small_language.dense(DECODERS["llama"])
    found = models.perplexity(model, TEXT, window=16, stride=stride, batch_size=4)
    last, expected = 0, []
    for start in range(0, len(TEXT) - 15, stride):
        row = plain_nats(model, TEXT[start : start + 16])
        expected += list(row[max(last - start - 1, 0) :])
        last = start + 16
    assert found.num_tokens == len(expected) == last - 1
    np.testing.assert_allclose(found.nats, sum(expected), rtol=1e-5)


@pytest.mark.parametrize("stride", [None, 15, 6])
def test_a_token_before_every_window(stride):
    model = small_language.dense(DECODERS["llama"])
    found = models.perplexity(model, TEXT, window=16, stride=stride, first_id=2, batch_size=4)
    last, expected = 0, []
    for start in range(0, len(TEXT) - 14, stride or 15):
        row = plain_nats(model, np.array([2, *TEXT[start : start + 15]]))
        expected += list(row[last - start :])
        last = start + 15
    assert found.num_tokens == len(expected) == last
    np.testing.assert_allclose(found.nats, sum(expected), rtol=1e-5)
    assert found.protocol.endswith("(behind a begin of text)")


def test_a_large_stride_samples_the_text():
    model = small_language.dense(DECODERS["gpt2"])
    found = models.perplexity(model, TEXT, window=8, stride=32, num_windows=2)
    expected = [plain_nats(model, TEXT[k : k + 8]).sum() for k in (0, 32)]
    assert (found.num_windows, found.num_tokens) == (2, 14)
    np.testing.assert_allclose(found.nats, sum(expected), rtol=1e-5)


def test_total_nats_by_total_tokens():
    """1,000 tokens at 2 nats and 10 at 4: not the mean of two perplexities."""
    assert evaluation.per_unit(1_000 * 2.0 + 10 * 4.0, 1_010) == pytest.approx(7.536832, abs=1e-6)
    assert evaluation.per_unit(1e6, 1) == np.inf


def test_logits_in_parts_give_the_same_scores(monkeypatch):
    model = small_language.dense(DECODERS["llama"])
    ids = small_language.ids((3, 12))
    whole = models.token_scores(model, ids)
    monkeypatch.setattr(evaluation, "_LOGIT_BYTES", 4 * 50 * 7)
    evaluation._token_scores.clear_cache()
    in_parts = models.token_scores(model, ids)
    np.testing.assert_allclose(in_parts.nats, whole.nats, rtol=1e-5)
    expected = jnp.argmax(model(ids)[:, :-1], -1) == ids[:, 1:]
    np.testing.assert_array_equal(in_parts.is_greedy, expected)


def test_scores_behind_padding():
    model = small_language.dense(DECODERS["llama"])
    ids, mask = small_language.ids((2, 9)), small_language.left_padding(3, 0, length=9)
    padded = models.token_scores(model, ids, mask).nats
    np.testing.assert_allclose(padded[0, 3:], plain_nats(model, np.asarray(ids[0, 3:])), rtol=1e-4)


def test_one_program_for_all_batches():
    model = small_language.dense(DECODERS["gpt2"])
    evaluation._token_scores.clear_cache()
    models.perplexity(model, TEXT, window=9, batch_size=3)
    assert evaluation._token_scores._cache_size() == 1


def test_progress_counts_windows():
    calls = []
    model = small_language.dense(DECODERS["gpt2"])
    models.perplexity(
        model, TEXT, window=16, batch_size=3, progress=lambda *call: calls.append(call)
    )
    assert calls == [(3, 4, ""), (4, 4, "")]


def test_speed_counts_all_sequences(monkeypatch):
    monkeypatch.setattr(evaluation, "_seconds", lambda call: 0.5)
    model = small_language.dense(DECODERS["llama"])
    assert models.speed(model, prompt_length=6, new_tokens=4, batch_size=2) == (24.0, 16.0)


def test_models_are_timed_in_turns(monkeypatch):
    calls = []
    monkeypatch.setattr(evaluation, "_seconds", lambda call: calls.append(call) or 1.0)
    decoder = small_language.dense(DECODERS["llama"])
    encoder = small.random_model(small.BERT)
    sizes = {"prompt_length": 6, "new_tokens": 4}
    assert models.speeds([decoder, encoder], **sizes, rounds=2) == [(6.0, 4.0), (6.0, None)]
    assert calls[:3] == calls[3:]
    assert len(set(map(id, calls))) == 3


def test_speed_makes_the_tokens_that_generate_makes():
    model = small_language.dense(DECODERS["llama"])
    ids = small_language.ids((2, 6))
    token, cache = evaluation._prefill(model, ids, 5)
    made = np.stack([token, *evaluation._decode(model, token, cache, 4)], 1)
    expected = models.generate(model, ids, max_new_tokens=5, sampling=models.Sampling())
    np.testing.assert_array_equal(made, expected.ids)
    assert min(models.speed(model, prompt_length=6, new_tokens=4, rounds=1)) > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ids": TEXT[:7]}, "the text has 7 tokens, fewer than one window=16"),
        ({"ids": TEXT + 10}, "token ids in .*59, the model knows 0..49: this tokenizer"),
        ({"ids": TEXT / 1.0}, "it must be .T,. integers"),
        ({"window": 33}, "33 tokens is longer than max_positions=32"),
        ({"window": 1}, "window=1 must be an integer of at least 2"),
        ({"stride": 0}, "stride=0 must be an integer of at least 1"),
        ({"num_windows": 0}, "num_windows=0 must be"),
        ({"first_id": 50}, "this tokenizer does not fit"),
        ({"batch_size": 0}, "batch_size=0 must be"),
        (
            {"model": small.random_model(small.BERT)},
            "kind Encoder: measure its accuracy",
        ),
        ({"model": small_language.dense(small_language.T5)}, "EncoderDecoder: score its answers"),
        (
            {"model": small_language.dense(dataclasses.replace(DECODERS["llama"], head="none"))},
            "kind Decoder, without a map to logits",
        ),
    ],
)
def test_bad_input(changes, message):
    given = {"model": small_language.dense(DECODERS["llama"]), "ids": TEXT, "window": 16} | changes
    with pytest.raises(ValueError, match=message):
        models.perplexity(given.pop("model"), given.pop("ids"), **given)


def test_nan_names_the_window():
    model = small_language.dense(DECODERS["gpt2"])
    arrays = models.to_arrays(model)
    arrays["embeddings/position/table"] = arrays["embeddings/position/table"].copy()
    arrays["embeddings/position/table"][10] = np.nan
    broken = models.from_arrays(dataclasses.replace(model.config), {}, arrays)
    assert models.perplexity(broken, TEXT, window=10).num_windows == 7
    with pytest.raises(FloatingPointError, match="window 0, counted from 0, from the emb"):
        models.perplexity(broken, TEXT, window=12)
    arrays["embeddings/position/table"] = np.zeros_like(arrays["embeddings/position/table"])
    arrays["layers/1/feed_forward/up/bias"] = arrays["layers/1/feed_forward/up/bias"] + np.inf
    broken = models.from_arrays(model.config, {}, arrays)
    with pytest.raises(FloatingPointError, match="from layers/1 on"):
        models.perplexity(broken, TEXT, window=12)
