"""Hooks and evaluation."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mpojax import data as data_lib
from mpojax import nn, training
from mpojax.methods.mpoe import router_statistics
from mpojax.training import metrics as metrics_lib
from mpojax.training import sharding
from mpojax.training.tasks import pretraining
from tests import marks
from tests.training import helpers


def _die(loop):
    raise RuntimeError("killed")


class TestHooks:
    def test_best_state_is_kept(self, tmp_path):
        seen = {}

        class Record(training.Hook):
            order = 50

            def after_step(self, loop):
                seen[loop.step] = jax.tree.map(np.asarray, loop.state)

        hook = helpers.dev_hook(every=2)
        result = helpers.run(tmp_path, hooks=[hook, Record()])
        best = training.restore_best(tmp_path, result.state)
        assert int(best.step) == hook.best_step
        helpers.assert_same_bits(best, seen[hook.best_step])
        evaluator = training.Evaluator(helpers.predict, training.accuracy)
        assert (
            evaluator(best, helpers.dev_data(), helpers.one_device())["accuracy"] == hook.best_value
        )

    def test_a_checkpoint_comes_after_what_hooks_have_written(self, tmp_path):
        told = []

        class Writes(training.Hook):
            def after_step(self, loop):
                self.step, self.folder = loop.step, tmp_path / "checkpoints" / str(loop.step)

            def sync(self):
                told.append((self.step, self.folder.exists()))

        helpers.run(tmp_path, hooks=[Writes(), training.Checkpoint(every=10, at_end=False)])
        assert told == [(10, False), (20, False)]

    @pytest.mark.parametrize(
        ("damage", "stop"),
        marks.slow_but(
            {("emptied", 10)},
            [(damage, stop) for damage in ("emptied", "absent") for stop in (10, 20)],
        ),
    )
    def test_a_best_state_that_is_damaged_is_forgotten(self, tmp_path, caplog, damage, stop):
        """The run goes on to its end with the best state since then."""
        first = helpers.dev_hook(every=2)
        helpers.run(tmp_path, hooks=[first, training.Checkpoint(), helpers.Stop(stop)])
        lost = tmp_path / "best-dev" / str(first.best_step)
        shutil.rmtree(lost)
        if damage == "emptied":
            lost.mkdir()
        hook = helpers.dev_hook(every=2)
        result = helpers.run(tmp_path, hooks=[hook, training.Checkpoint()])
        assert f"the best state, of step {first.best_step} with accuracy=" in caplog.text
        assert hook.best_step > stop or hook.best_step == stop == 20
        best = training.restore_best(tmp_path, result.state)
        assert int(best.step) == hook.best_step
        evaluator = training.Evaluator(helpers.predict, training.accuracy)
        assert (
            evaluator(best, helpers.dev_data(), helpers.one_device())["accuracy"] == hook.best_value
        )
        names = [path.name for path in (tmp_path / "best-dev").iterdir()]
        damaged = [f"damaged-{first.best_step}"] * (damage == "emptied")
        assert sorted(names) == sorted([str(hook.best_step), *damaged])

    def test_a_best_state_of_steps_after_the_checkpoint_comes_again(self, tmp_path, caplog):
        """As a kill between two checkpoints leaves it."""
        whole, values = helpers.dev_hook(every=2), iter(range(100))
        whole.evaluator = lambda *unused: {"accuracy": float(next(values))}
        with pytest.raises(RuntimeError, match="killed"):
            helpers.run(
                tmp_path, hooks=[whole, training.Checkpoint(every=5), training.Call(_die, every=9)]
            )
        assert (tmp_path / "best-dev" / "8").is_dir()
        again, values = helpers.dev_hook(every=2), iter(range(2, 100))
        again.evaluator = lambda *unused: {"accuracy": float(next(values))}
        result = helpers.run(tmp_path, steps=8, hooks=[again, training.Checkpoint()])
        assert result.steps_run == 3
        assert "cannot be read" not in caplog.text
        assert (again.best_step, again.best_value) == (8, 3.0)
        assert int(training.restore_best(tmp_path, result.state).step) == 8

    def test_hook_may_change_shapes_and_resume(self, tmp_path):
        class Cut(training.Hook):
            """Cuts the bond between the first two cores to 4 after step 6."""

            name = "cut"

            def __init__(self):
                self.bond = 8

            def cut(self, loop):
                model = loop.state.model()
                first, second = model.body.cores[0], model.body.cores[1]
                model.body.cores[0] = nn.AuxiliaryCore(first[...][:, :4])
                model.body.cores[1] = nn.CentralCore(second[...][:4])
                optimizer = loop.step_function.optimizer
                loop.replace(state=loop.state.with_model(model, helpers.LIGHTWEIGHT, optimizer))
                self.bond = 4

            def after_step(self, loop):
                if loop.step == 6:
                    self.cut(loop)

            def state_dict(self):
                return {"bond": self.bond}

            def load_state_dict(self, loop, saved):
                if saved["bond"] == 4:
                    self.cut(loop)

        whole = helpers.run(tmp_path / "whole", steps=12, hooks=[Cut()], log_every=1)
        # The optimizer started afresh after step 6; what is logged is the rate it really used.
        lines = metrics_lib.read(tmp_path / "whole" / "metrics.jsonl")
        rates = [line["learning_rate"] for line in lines]
        assert rates[6:] == rates[:6]
        assert rates[0] == pytest.approx(0.01)  # the warm-up's first step
        assert whole.traces == 2
        assert whole.state.trainable["body"]["cores"]["0"].shape == (helpers.FEATURES, 4)
        helpers.run(tmp_path / "parts", steps=12, hooks=[Cut(), helpers.Stop(9)])
        parts = helpers.run(tmp_path / "parts", steps=12, hooks=[Cut()])
        assert parts.steps_run == 3
        helpers.assert_same_bits(parts.state, whole.state)

    def test_hooks_with_equal_names(self):
        with pytest.raises(ValueError, match="different names"):
            helpers.run(steps=2, hooks=[helpers.dev_hook(), helpers.dev_hook()])

    def test_best_without_folder(self):
        with pytest.raises(ValueError, match="needs a folder"):
            helpers.run(steps=2, hooks=[helpers.dev_hook()])

    def test_close_is_called_after_an_error(self):
        closed = []

        class Watch(training.Hook):
            def close(self):
                closed.append(True)

        def fail(loop):
            raise RuntimeError("on purpose")

        with pytest.raises(RuntimeError, match="on purpose"):
            helpers.run(steps=5, hooks=[Watch(), training.Call(fail, every=2)])
        assert closed == [True]

    def test_all_are_closed_though_one_close_fails(self, tmp_path, monkeypatch):
        closed = []

        class Watch(training.Hook):
            def __init__(self, name, order):
                self.name, self.order = name, order

            def close(self):
                closed.append(self.name)
                if self.name == "middle":
                    raise RuntimeError("cannot close")

        close = training.MetricsWriter.close
        monkeypatch.setattr(
            training.MetricsWriter, "close", lambda self: (closed.append("writer"), close(self))
        )
        hooks = [Watch("first", 1), Watch("middle", 2), Watch("last", 3)]
        with pytest.raises(RuntimeError, match="cannot close"):
            helpers.run(tmp_path, steps=2, hooks=[*hooks, training.Checkpoint()])
        assert closed == ["last", "middle", "first", "writer"]

    def test_progress_line_without_terminal(self, caplog):
        caplog.set_level("INFO", logger="absl")
        helpers.run(steps=4, hooks=[training.Progress("tiny")])
        assert "tiny: 4 of 4, loss" in caplog.text

    def test_progress_bar_on_a_terminal(self, monkeypatch, capfd):
        monkeypatch.setattr("sys.stderr.isatty", lambda: True)
        helpers.run(steps=4, hooks=[training.Progress("tiny")])
        assert "tiny" in capfd.readouterr().err


class TestEvaluation:
    def test_exact_over_a_padded_last_batch(self):
        model = helpers.Classifier()
        expected = np.argmax(model(jnp.asarray(helpers.arrays(37, seed=1)["x"])), -1)
        evaluator = training.Evaluator(helpers.predict, training.accuracy)
        columns = evaluator.columns(model, helpers.dev_data())
        assert columns["predictions"].shape == (37,)
        np.testing.assert_array_equal(columns["predictions"], expected)
        labels = helpers.arrays(37, seed=1)["labels"]
        assert evaluator(model, helpers.dev_data())["accuracy"] == pytest.approx(
            np.mean(expected == labels)
        )

    def test_columns_are_in_the_order_of_the_data_though_batches_go_by_length(self):
        lengths = np.random.default_rng(0).integers(1, 9, 37)
        mask = (np.arange(8)[None] < lengths[:, None]).astype(np.int32)
        source = helpers.arrays(37, seed=1) | {"attention_mask": mask}
        evaluator = training.Evaluator(
            lambda model, batch: {"tokens": batch["attention_mask"].sum(1)}, training.accuracy
        )
        columns = evaluator.columns(
            helpers.Classifier(), data_lib.EvalData(source, 16, lengths=(2, 4))
        )
        np.testing.assert_array_equal(columns["tokens"], lengths)
        np.testing.assert_array_equal(columns["labels"], source["labels"])

    def test_state_and_model_agree(self):
        state, _ = helpers.start()
        evaluator = training.Evaluator(helpers.predict, training.accuracy)
        mesh = training.make_mesh()
        placed = sharding.device_put(state, training.state_shardings(state, mesh))
        assert evaluator(placed, helpers.dev_data(), mesh) == evaluator(
            helpers.Classifier(), helpers.dev_data()
        )


class Broken(nnx.Module):
    """Logits that are NaN, or infinite, for the examples whose first token is 1."""

    def __init__(self, value=np.nan, outputs=2):
        self.value, self.outputs = nnx.Param(jnp.float32(value)), outputs

    def __call__(self, input_ids, *unused, **more):
        logits = jnp.ones((len(input_ids), self.outputs), jnp.float32)
        return jnp.where(input_ids[:, :1] == 1, self.value[...], logits)


class TestOutputsThatAreNotFinite:
    """An argmax of NaN is class 0: without a check half of the examples would be right."""

    def arrays(self, bad=21, labels=np.int32):
        ids = np.zeros((37, 3), np.int32)
        ids[bad, 0] = 1
        return {"input_ids": ids, "labels": np.arange(37).astype(labels) % 2}

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("predict", [training.classify, training.score])
    def test_metric_batch_and_example_are_named(self, predict, value):
        evaluator = training.Evaluator(predict, training.accuracy)
        model = Broken(value, outputs=2 if predict is training.classify else 1)
        message = (
            r"^accuracy: the model's output for 1 of 16 examples in batch 2 of 3 is NaN or infinite"
            r" \(the first: example 21, counted from 0\)"
        )
        with pytest.raises(training.NonFiniteOutputError, match=message):
            evaluator(model, data_lib.EvalData(self.arrays(), 16))
        good = self.arrays()
        good["input_ids"][:] = 0
        evaluator(model, data_lib.EvalData(good, 16))

    def test_examples_go_by_the_data_though_batches_go_by_length(self):
        lengths = np.full(37, 3)
        lengths[21] = 1
        mask = (np.arange(3)[None] < lengths[:, None]).astype(np.int32)
        source = self.arrays() | {"attention_mask": mask}
        evaluator = training.Evaluator(training.classify, training.accuracy)
        with pytest.raises(training.NonFiniteOutputError, match=r"batch 1 of 3 .*example 21,"):
            evaluator(Broken(), data_lib.EvalData(source, 16, lengths=(1, 2)))

    def test_results_of_own_functions(self):
        for value, is_refused in ((np.nan, True), (np.inf, True), (-np.inf, False)):
            evaluator = training.Evaluator(
                lambda model, batch: {"nats": model(batch["input_ids"])},
                lambda columns: {"nats": float(np.sum(columns["nats"]))},
                metrics=("nats",),
            )
            data = data_lib.EvalData(self.arrays(), 16)
            if is_refused:
                with pytest.raises(training.NonFiniteOutputError, match=r"^nats: "):
                    evaluator(Broken(value), data)
            else:
                assert evaluator(Broken(value), data) == {"nats": -np.inf}

    def test_in_a_run_the_split_and_the_step_are_named(self):
        def predict(model, batch):
            return {"predictions": model(batch["x"])[:, 0] * jnp.nan}

        evaluator = training.Evaluator(predict, lambda columns: {}, metrics=("f1",))
        hook = training.Evaluate("dev", helpers.dev_data(), evaluator, every=2)
        with pytest.raises(training.NonFiniteOutputError, match=r"^step 2, dev/f1: .*16 of 16"):
            helpers.run(steps=4, hooks=[hook])


@pytest.mark.parametrize(
    ("make", "low"),
    [
        (lambda every: training.Evaluate("dev", None, None, every), 0),
        (lambda every: training.Checkpoint(every), 0),
        (lambda every: training.Call(print, every), 1),
        (lambda every: training.UpdateStatistics({}, every), 1),
        (lambda every: router_statistics.RouterStatistics(None, every), 0),
        (lambda every: pretraining.FilledMasks({}, None, every), 1),
    ],
)
def test_intervals_that_would_do_nothing(make, low):
    for every in (low - 1, -5):
        with pytest.raises(ValueError, match=f"every={every} must"):
            make(every)
