"""Where routers send tokens, as the hook sees it; and training of a decoder with experts."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments.render import runs
from mpojax import data, training
from mpojax.methods.mpoe import gradient_mask, router_statistics
from mpojax.training import metrics as metrics_lib
from mpojax.training import state as state_lib
from tests.training import helpers, small_decoder

MASK = {"rate": 0.5}


def dev(count=24, rows=16):
    return data.EvalData(small_decoder.arrays(count, seed=1), rows)


def hook(every=2, **more):
    return router_statistics.RouterStatistics(more.pop("data", None) or dev(), every, **more)


def expected(model, arrays):
    """Load of every expert, (layers, experts), over all tokens; by the model itself."""
    return model.forward(arrays["input_ids"]).routing[0]


def broken(model):
    """The model with parameters that are NaN."""
    graph, state = nnx.split(model)
    return nnx.merge(graph, jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), state))


@pytest.fixture(scope="module")
def one_step(tmp_path_factory):
    """Folder of a run of one step, looked at before and after it."""
    folder = tmp_path_factory.mktemp("one_step")
    small_decoder.run(folder, steps=1, hooks=[hook(every=0)])
    return folder


class TestHook:
    def test_numbers_are_those_of_the_whole_data(self, one_step):
        """Also of a last batch that is filled up with copies."""
        rows = router_statistics.read(one_step)
        start = [row for row in rows if row["step"] == 0]
        assert [r["layer"] for r in start] == ["layer_00"] * 4 + ["layer_01"] * 4
        assert [r["expert"] for r in start] == [0, 1, 2, 3] * 2
        whole = expected(small_decoder.model(), small_decoder.arrays(24, seed=1))
        for name in ("load", "probability"):
            np.testing.assert_allclose(
                [r[name] for r in start], np.ravel(getattr(whole, name)), rtol=1e-4, err_msg=name
            )
        for name in ("entropy", "dropped", "balance", "z_loss", "tokens"):
            of_layers = [start[0][name], start[4][name]]
            np.testing.assert_allclose(of_layers, getattr(whole, name), rtol=1e-4, err_msg=name)
        assert {r["step"] for r in rows} == {0, 1}

    def test_what_is_logged(self, tmp_path):
        result = small_decoder.run(tmp_path, steps=2, hooks=[hook()])
        lines = metrics_lib.read(tmp_path / "metrics.jsonl")
        looks = {x["step"]: x for x in lines if "router/layer_00/entropy" in x}
        assert sorted(looks) == [0, 2]
        names = {"load_00", "load_01", "load_02", "load_03", "max_load", "entropy", "dropped"}
        found = {name for name in looks[0] if name.startswith("router/layer_01/")}
        assert found == {f"router/layer_01/{name}" for name in names}
        loads = [looks[2][f"router/layer_00/load_0{i}"] for i in range(4)]
        assert sum(loads) == pytest.approx(1.0)
        assert looks[2]["router/layer_00/max_load"] == pytest.approx(4 * max(loads))
        assert not [name for name in result.metrics if "layer_" in name]
        assert {"router/balance", "router/max_load", "router/dropped"} <= set(result.metrics)

    def test_only_so_many_batches(self, tmp_path):
        small_decoder.run(tmp_path, steps=1, hooks=[hook(every=0, batches=1)])
        start = router_statistics.read(tmp_path)[0]
        assert start["tokens"] == 16 * small_decoder.LENGTH

    def test_resume(self, tmp_path):
        hooks = [hook(every=1), training.Checkpoint(every=2, at_end=False)]
        copy = helpers.CopyFolder(2, tmp_path / "whole", tmp_path / "resumed")
        whole = small_decoder.run(tmp_path / "whole", steps=4, hooks=[*hooks, copy])
        # As if the run had been killed after a look that no checkpoint knows of.
        path = tmp_path / "resumed" / router_statistics.NAME
        path.write_text(path.read_text() + "9,layer_01,0,1.0,1.0,0.0,0.0,4.0,0.0,1.0\n")
        again = small_decoder.run(
            tmp_path / "resumed", steps=4, hooks=[hook(every=1), training.Checkpoint(at_end=False)]
        )
        assert again.steps_run == 2
        names = [tmp_path / name / router_statistics.NAME for name in ("whole", "resumed")]
        assert names[0].read_text() == names[1].read_text()
        helpers.assert_same_bits(whole.state, again.state)

    def test_errors(self):
        with pytest.raises(ValueError, match="every=-1 must be an integer of at least 0"):
            hook(every=-1)
        with pytest.raises(ValueError, match="batches=0 must be an integer of at least 1"):
            hook(batches=0)
        with pytest.raises(training.NonFiniteOutputError, match=r"router/layer_00/.*batch 1 is"):
            small_decoder.run(steps=1, hooks=[hook()], made=broken(small_decoder.model()))
        plain = small_decoder.model(experts=())
        with pytest.raises(ValueError, match="needs a model with experts; this one has none"):
            small_decoder.run(steps=1, hooks=[hook()], made=plain)


def test_names_of_layers_with_experts():
    paths = {
        "towers/encoder/stacks/0/norm/scale": (2, 4),
        "towers/encoder/stacks/1/norm/scale": (3, 4),
        "towers/encoder/stacks/1/feed_forward/router/kernel": (3, 4, 2),
        "towers/decoder/stacks/0/norm/scale": (2, 4),
        "towers/decoder/stacks/0/feed_forward/router/kernel": (2, 4, 2),
        "towers/decoder/stacks/10/norm/scale": (1, 4),
        "towers/decoder/stacks/10/feed_forward/router/kernel": (1, 4, 2),
    }
    arrays = state_lib.nest({path: np.zeros(shape) for path, shape in paths.items()})
    state = training.TrainState(None, arrays, {}, None, None, None)
    assert router_statistics.layers_with_experts(state) == [
        *(f"encoder_layer_0{i}" for i in (2, 3, 4)),
        *(f"decoder_layer_0{i}" for i in (0, 1, 2)),
    ]


class TestPicture:
    def rows(self):
        rng, rows = np.random.default_rng(0), []
        for step in (0, 10, 20):
            for layer, experts in (("layer_00", 4), ("layer_01", 2)):
                for expert, load in enumerate(rng.dirichlet(np.ones(experts))):
                    rows.append(
                        {
                            "step": step,
                            "layer": layer,
                            "expert": expert,
                            "load": load,
                            "entropy": 1.0 - step / 40,
                        }
                    )
        return rows

    def test_draws_the_last_loads_and_the_course(self):
        rows = self.rows()
        heat, entropy, busiest, _ = runs.draw_router(rows).axes
        shown = np.asarray(heat.images[0].get_array())
        last = [row["load"] for row in rows if row["step"] == 20]
        np.testing.assert_allclose(shown[0], 4 * np.array(last[:4]))
        np.testing.assert_allclose(shown[1][:2], 2 * np.array(last[4:]))
        assert np.isnan(np.ma.filled(shown, np.nan)[1, 2:]).all()
        np.testing.assert_allclose(entropy.lines[0].get_ydata(), [1.0, 0.75, 0.5])
        np.testing.assert_allclose(busiest.lines[1].get_ydata()[-1], 2 * max(last[4:]))
        assert entropy.lines[-1].get_ydata()[0] == pytest.approx(math.log(4))

    def test_from_a_run(self, one_step):
        runs.write_router(one_step)
        assert (one_step / "router.png").read_bytes().startswith(b"\x89PNG")

    def test_nothing_to_draw(self, tmp_path):
        with pytest.raises(ValueError, match="no statistics of routers"):
            runs.write_router(tmp_path)


class TestTrainingOfExperts:
    @pytest.mark.slow
    def test_on_any_mesh_with_a_mask(self, tmp_path):
        """Split over data, fsdp, tensor and experts, the run takes the same course."""
        mesh = training.make_mesh({"data": 2, "tensor": 2, "expert": 2})
        optimizer = {"central_mask": MASK}
        for name in ("one", "split"):
            (tmp_path / name).mkdir()
        plain = small_decoder.run(tmp_path / "one", steps=4, optimizer=optimizer)
        split = small_decoder.run(tmp_path / "split", steps=4, mesh=mesh, optimizer=optimizer)
        core = split.state.trainable["tower"]["stacks"]["0"]["feed_forward"]["experts"]["up"]
        assert core["cores"]["0"].sharding.spec[1] == "expert"
        lines = [metrics_lib.read(tmp_path / name / "metrics.jsonl") for name in ("one", "split")]
        assert {x["central_masked"] for x in lines[0]} == {0.0, 1.0}
        for a, b in zip(*lines, strict=True):
            assert a["central_masked"] == b["central_masked"]
            assert b["loss"] == pytest.approx(a["loss"], rel=2e-3)
        assert plain.metrics["loss"] < lines[0][0]["loss"]

    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["lamb", "muon"])
    def test_micro_batches_and_other_optimizers(self, name):
        optimizer = {"name": name, "central_mask": MASK | {"granularity": "tensor"}}
        result = small_decoder.run(steps=2, optimizer=optimizer, grad_accum_steps=2)
        assert np.isfinite(result.metrics["loss"])
        assert 0.0 <= result.metrics["mask_rate"] <= 1.0

    def test_dry_run(self):
        made = small_decoder.abstract_model()
        optimizer = gradient_mask.make_optimizer({"central_mask": MASK}, training.roles(made), 10)
        report = training.dry_run(
            training.abstract_state(made, training.state.nnx.Param, optimizer),
            training.language_model_loss(),
            {n: a[: small_decoder.ROWS] for n, a in small_decoder.arrays().items()},
            optimizer=optimizer,
            mesh=training.make_mesh({"data": 2, "fsdp": 2, "expert": 2}),
            rules=training.model_rules(made, min_size=1),
        )
        shown = {row.path: row for row in report.table}
        up = shown["tower/stacks/0/feed_forward/experts/up/cores/0"]
        assert up.bytes_per_device == 4 * math.prod(up.shape) / 4
        assert report.parameters["central"] == 2 * 2 * 4 * 4 * 8 * 4
        assert "target_weights 16x8" in report.text()
