"""Compression layer by layer: against a naive float64 reference, masks, what is taken up."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mpojax import compression, models, mpo, nn
from mpojax.compression import layerwise, tapping
from tests import marks
from tests.models import small, small_language

CONFIGS = {
    "llama": dataclasses.replace(small_language.LLAMA, num_layers=2),
    "gpt2": dataclasses.replace(small_language.GPT2, num_layers=2),
    "bert": dataclasses.replace(small.BERT, num_layers=2),
}
IDS = np.random.default_rng(0).integers(1, 20, (6, 9))
MASK = (np.arange(9) < np.array([[9], [7], [3], [9], [5], [9]])).astype(np.int32)
BATCHES = [{"input_ids": IDS[:4], "attention_mask": MASK[:4]}]
BATCHES += [{"input_ids": IDS[4:], "attention_mask": MASK[4:]}]


# Biases are those of BERT, the decoder that of Llama: GPT-2 has no block of its own.
@pytest.fixture(scope="module", params=marks.slow_but(("llama", "bert"), CONFIGS))
def setting_of_each(request):
    """As `setting`, of every kind of block."""
    return _setting(CONFIGS[request.param])


@pytest.fixture(scope="module")
def setting():
    """(model, ranks, curvatures): rank 4 everywhere but for two matrices."""
    return _setting(CONFIGS["llama"])


def _setting(config):
    model = models.build(config, rngs=nnx.Rngs(1))
    calibration = compression.calibrate(model, BATCHES, curvature=True)
    found = {p: s for p, s in calibration.statistics.items() if "layers/" in p}
    ranks: dict = dict.fromkeys(found, 4)
    ranks["layers/0/attention/out"] = None
    del ranks["layers/1/attention/key"]
    return model, ranks, {p: mpo.ridged(s.curvature, 0.1) for p, s in found.items()}


@jax.jit
def _entering(layer, x, context):
    names = {id(node): "/".join(map(str, path)) for path, node in nnx.iter_graph(layer)}
    seen = {}
    with pytest.MonkeyPatch.context() as patch:
        for kind in (nn.Dense, nn.LayerNorm, nn.RMSNorm):

            def watched(self, x, *args, _call=kind.__call__, **options):
                seen[names[id(self)]] = x
                return _call(self, x, *args, **options)

            patch.setattr(kind, "__call__", watched)
        return seen, layer(x, context)[0]


def entering(layer, x, context):
    """({part: what enters it}, output), by watching calls."""
    seen, output = _entering(layer, x, context)
    return {name: np.asarray(value, np.float64) for name, value in seen.items()}, output


def naive(model, ranks, curvatures):
    """{path: matrix}: every matrix from a new run of its layer in both models."""
    config, found = model.config, {}
    ids, mask = jnp.asarray(IDS), jnp.asarray(MASK)
    real = MASK > 0
    x, context = model.begin(ids, mask)
    stack = getattr(model, "tower", model)
    arrays = dict(models.to_arrays(model))
    changed = x
    gate = ["feed_forward/gate"] if config.gated else []
    order = [f"attention/{name}" for name in ("query", "key", "value", "out")]
    for index in range(config.num_layers):
        layer = stack.layer(index)
        before, output = entering(layer, x, context)
        for name in [*order, *gate, "feed_forward/up", "feed_forward/down"]:
            path = f"layers/{index}/{name}"
            if path not in ranks:
                continue
            other = models.from_arrays(config, {}, arrays)
            other = getattr(other, "tower", other).layer(index)
            after, _ = entering(other, changed, context)
            w = np.asarray(arrays[f"{path}/kernel"], np.float64)
            new, goal = after[name][real], before[name][real] @ w
            if name.endswith(("out", "down")):
                part = name.partition("/")[0]
                reads = f"{part}_norm" if config.pre_norm else f"{part}/query"
                reads = reads.replace("feed_forward/query", "feed_forward/up")
                goal = goal + before[reads][real] - after[reads][real]
            ridge = np.sqrt(layerwise.TARGET_RIDGE * np.sum(new**2) / new.shape[1])
            rows = np.concatenate([new, ridge * np.eye(len(w))])
            target = np.linalg.lstsq(rows, np.concatenate([goal, ridge * w]), rcond=None)[0]
            if ranks[path] is not None:
                left = np.linalg.cholesky(new.T @ new + 1e-9 * np.eye(len(w)))
                right = np.linalg.cholesky(curvatures[path])
                u, s, vt = np.linalg.svd(left.T @ target @ right)
                kept = (u[:, : ranks[path]] * s[: ranks[path]]) @ vt[: ranks[path]]
                target = np.linalg.solve(left.T, kept) @ np.linalg.inv(right)
            found[path] = target
            arrays[f"{path}/kernel"] = np.float32(target)
        other = models.from_arrays(config, {}, arrays)
        _, changed = entering(getattr(other, "tower", other).layer(index), changed, context)
        x = output
    return found


def test_against_a_naive_reference(setting_of_each):
    model, ranks, curvatures = setting_of_each
    done = []
    result = layerwise.compress(model, BATCHES, ranks, curvatures, progress=done.append)
    assert sorted(done) == sorted(ranks)
    assert set(result.dense) == {"layers/0/attention/out"}
    expected = naive(model, ranks, curvatures)
    assert set(expected) == {*result.chains, *result.dense}
    batch = {"input_ids": IDS, "attention_mask": MASK}
    covariances = compression.calibrate(model, [batch]).statistics
    for path, goal in expected.items():
        w = result.dense.get(path)
        if w is None:
            shape, cores = result.chains[path]
            assert shape.pivoted
            w = mpo.to_matrix(cores, shape)
        # Directions that few tokens reach are loose: the outputs count.
        metric = covariances[path].covariance
        assert mpo.weighted_relative_error(goal, w, metric) < 2e-2, path


def test_nothing_changes_at_full_rank(setting):
    model, ranks, curvatures = setting
    result = layerwise.compress(model, BATCHES, dict.fromkeys(ranks), curvatures)
    arrays = models.to_arrays(model)
    for path, w in result.dense.items():
        np.testing.assert_allclose(w, arrays[f"{path}/kernel"], atol=1e-3)
    assert max(result.stream_error) < 1e-4


def test_what_writes_to_the_stream_takes_up_its_error(setting_of_each):
    """Without the correction the stream is further from the original's."""
    model, ranks, curvatures = setting_of_each
    ranks = {**ranks, "layers/1/feed_forward/down": None, "layers/1/attention/out": None}
    aware = layerwise.compress(model, BATCHES, ranks, curvatures)
    block = type(getattr(model, "tower", model).layer(0))
    plain_stream_of, block.stream_of = block.stream_of, lambda self, matrix: None
    try:
        plain = layerwise.compress(model, BATCHES, ranks, curvatures)
    finally:
        block.stream_of = plain_stream_of
    assert aware.stream_error[-1] < plain.stream_error[-1]


def test_models_that_have_no_single_stack_are_refused():
    pair = models.build(small_language.T5, rngs=nnx.Rngs(0))
    assert "EncoderDecoder is neither a language model" in layerwise.refusal(pair)
    assert layerwise.refusal(models.build(small_language.LLAMA, rngs=nnx.Rngs(0))) is None


def test_rows_of_padding_do_not_count(setting):
    outside = models.StoredModel.of(setting[0]).outside()
    rows = np.array([True, False, True, True])
    *_, weights = tapping.start(outside, BATCHES[0] | {"example_mask": rows})
    np.testing.assert_array_equal(weights, MASK[:4] * rows[:, None])


def test_an_interrupted_run_resumes_to_the_same_result(setting, tmp_path):
    model, ranks, curvatures = setting
    whole = layerwise.compress(model, BATCHES, ranks, curvatures)

    def stop(path):
        if path == "layers/1/attention/out":
            raise KeyboardInterrupt

    folder, done = tmp_path / "partial", []
    with pytest.raises(KeyboardInterrupt):
        layerwise.compress(model, BATCHES, ranks, curvatures, resume=folder, progress=stop)
    again = layerwise.compress(
        model, BATCHES, ranks, curvatures, resume=folder, progress=done.append
    )
    assert whole.stream_error == again.stream_error
    for path in ranks:
        np.testing.assert_array_equal(whole.matrix(path), again.matrix(path))
    # Of other arguments nothing is taken: other ranks, other texts of as many tokens.
    texts = [{**batch, "input_ids": batch["input_ids"][:, ::-1]} for batch in BATCHES]
    given = texts, ranks, curvatures
    changed = layerwise.compress(model, *given, resume=folder)
    assert changed.stream_error == layerwise.compress(model, *given).stream_error
    other = layerwise.compress(model, BATCHES, dict.fromkeys(ranks), curvatures, resume=folder)
    assert not other.chains
