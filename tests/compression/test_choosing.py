"""Method "best": what it holds out, what it measures, and that the best is what comes out."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import mpojax as mj
from mpojax import models
from mpojax.compression import choosing, compressing, layerwise
from mpojax.compression.matrices import matrices_of
from tests.models import small, small_language

CONFIG = dataclasses.replace(small_language.LLAMA, num_layers=2)
IDS = np.random.default_rng(0).integers(1, 20, (16, 12))


@pytest.fixture(scope="module")
def model():
    return models.build(CONFIG, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module", autouse=True)
def always_layer_by_layer():
    """An untrained model predicts nothing, and so loses nothing; a test has few tokens."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choosing, "_CLOSE", -np.inf)
        patch.setattr(choosing, "_FEWEST", 0)
        yield


@pytest.fixture(scope="module")
def compressed(model, always_layer_by_layer):
    return mj.compress(model, budget=0.7, calibration=IDS, method="best")


@pytest.mark.parametrize(
    ("sizes", "held"),
    [((16,), [7, 15]), ((5, 5, 6), [7, 15]), ((3,), [2]), ((1, 1), [1]), ((1,), [])],
)
def test_every_eighth_row_is_held_out(sizes, held):
    rows = np.arange(sum(sizes))
    batches = [{"input_ids": part[:, None]} for part in np.split(rows, np.cumsum(sizes)[:-1])]
    kept, out = choosing.split(batches)
    for batches, expected in ((kept, np.setdiff1d(rows, held)), (out, np.array(held))):
        found = [batch["input_ids"][:, 0] for batch in batches]
        assert np.concatenate([*found, []]).tolist() == expected.tolist()


def test_rows_of_padding_are_neither_held_out_nor_learned_from():
    batches = [{"input_ids": IDS[:8], "example_mask": np.ones(8, bool)}]
    batches += [{"input_ids": IDS[8:], "example_mask": np.arange(8) < 3}]
    kept, out = choosing.split(batches)
    assert [len(batch["input_ids"]) for batch in (*kept, *out)] == [7, 3, 1]
    assert all(batch["example_mask"].all() for batch in (*kept, *out))


def test_all_texts_count_at_the_inputs_and_some_for_curvatures(model, monkeypatch):
    monkeypatch.setattr(compressing, "CURVATURE_TOKENS", 24)
    found = compressing._calibrated(
        matrices_of(model),
        "pivoted",
        [{"input_ids": part} for part in np.split(IDS, 8)],
        (),
        (),
        None,
    )[0]
    alone = mj.calibrate(model, [{"input_ids": IDS[:2]}], curvature=True)
    path = "layers/1/attention/query"
    one, other = (each.statistics[path] for each in (found, alone))
    assert (one.count, other.count) == (IDS.size, 24)
    np.testing.assert_allclose(one.curvature, other.curvature, rtol=1e-5)


def test_settings_that_a_method_does_not_have(model):
    for name, value in (("bond", 4), ("allocation", "first_order"), ("keep_dense", False)):
        with pytest.raises(ValueError, match=f"leave {name}={value!r} out"):
            mj.compress(model, budget=0.7, calibration=IDS, **{name: value})


def test_the_best_on_held_out_texts_comes_out(model, compressed):
    made, report = compressed
    choice = report.choice
    assert [*choice.found][:2] == ["dense", "ranks by loss"]
    assert choice.found[choice.chosen] == min(v for k, v in choice.found.items() if k != "dense")
    assert (choice.measure, choice.tokens) == ("perplexity", 2 * 12)
    for name, of in ((choice.chosen, mj.merge(made)), ("dense", model)):
        nats = np.asarray(models.token_scores(of, jnp.asarray(IDS[[7, 15]])).nats, np.float64)
        assert choice.found[name] == pytest.approx(np.exp(nats.mean()), rel=1e-4)
    for text in (report.table(), report.to_markdown()):
        assert f"chosen: {choice.chosen}, by perplexity" in " ".join(text.split())
    assert report.to_dict()["choice"]["found"] == choice.found


def test_it_is_deterministic(model, compressed):
    steps = []
    given = {"budget": 0.7, "calibration": IDS}
    again, report = mj.compress(model, **given, progress=lambda *step: steps.append(step[:2]))
    total = steps[-1][1]
    assert steps == [(number, total) for number in range(1, total + 1)]  # all are known at once
    assert report.choice == compressed[1].choice
    ids = jnp.asarray(IDS)
    np.testing.assert_array_equal(again(ids), compressed[0](ids))


def test_factors_that_do_not_fit_are_made_again(model, compressed, monkeypatch):
    monkeypatch.setattr(choosing, "_KEPT_BYTES", 0)
    _, report = mj.compress(model, budget=0.7, calibration=IDS)
    assert report.choice.chosen == compressed[1].choice.chosen
    for name, value in compressed[1].choice.found.items():
        assert report.choice.found[name] == pytest.approx(value, rel=1e-5)


def test_layer_by_layer_is_kept_only_if_it_is_better(model, monkeypatch):
    whole = layerwise.compress

    def ruined(*args, **options):
        result = whole(*args, **options)
        chains = {p: (shape, (0 * c[0], *c[1:])) for p, (shape, c) in result.chains.items()}
        return dataclasses.replace(result, chains=chains)

    monkeypatch.setattr(layerwise, "compress", ruined)
    made, report = mj.compress(model, budget=0.7, calibration=IDS, method="best")
    assert not report.choice.chosen.endswith(choosing.LAYERWISE)
    held = mj.merge(made)(jnp.asarray(IDS[[7, 15]]))
    assert float(jnp.abs(held).max()) > 0
    assert report.parameters <= 0.7 * report.dense_parameters
    assert any(shape.pivoted for shape in made.shapes.values())


@pytest.mark.parametrize("limit", [{"_CLOSE": 9.0}, {"_FEWEST": 99}])
def test_layer_by_layer_is_not_tried_where_it_would_not_gain(model, compressed, limit, monkeypatch):
    for name, value in limit.items():
        monkeypatch.setattr(choosing, name, value)
    steps = []
    _, report = mj.compress(
        model, budget=0.7, calibration=IDS, progress=lambda *step: steps.append(step)
    )
    names = [name for name in compressed[1].choice.found if choosing.LAYERWISE not in name]
    assert [*report.choice.found] == names
    assert steps[-1][0] == steps[-1][1] == len(steps)
    # How many tokens there are is known at once, what is close only when it is measured.
    assert len({total for _, total, _ in steps}) == (1 if "_FEWEST" in limit else 2)


def test_texts_to_choose_by_may_be_given(model, caplog):
    calibration = mj.calibrate(model, [{"input_ids": IDS}], curvature=True)
    given = {"budget": 0.7, "calibration": calibration, "batches": jnp.asarray(IDS)}
    _, report = mj.compress(model, held_out=IDS[:3], method="best", **given)
    assert report.choice.tokens == 36
    _, report = mj.compress(model, method="best", **given)
    assert report.choice is None
    assert "no text to choose by: give more than one text, or held_out=" in caplog.text


def test_other_models_are_measured_by_their_output():
    encoder = models.build(small.BERT, rngs=nnx.Rngs(0))
    ids = IDS[:, : small.BERT.max_positions]
    mask = (np.arange(ids.shape[1]) < 5).astype(np.int32) * np.ones_like(ids)
    measure = choosing.Measure(matrices_of(encoder), [{"input_ids": ids, "attention_mask": mask}])
    assert measure({}) == 0.0
    path = "layers/0/feed_forward/up"
    w = np.asarray(models.to_arrays(encoder)[f"{path}/kernel"])
    assert 0 < measure({path: 0.9 * w}) < measure({path: 0 * w})
    _, report = mj.compress(encoder, budget=0.8, calibration=ids, method="best")
    assert report.choice.measure == "relative error of the output"
