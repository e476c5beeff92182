"""The loop: resume, freezing, tracing, accumulation, metrics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mpojax import nn, training
from mpojax.training import metrics as metrics_lib
from mpojax.training import state as state_lib
from tests.training import helpers


class TestResume:
    # At 5 an evaluation is due; at 8 a line of metrics alone.
    @pytest.mark.parametrize("at", [5, pytest.param(8, marks=pytest.mark.slow)])
    def test_interrupted_run_gives_the_same_bits(self, tmp_path, at):
        whole = helpers.run(tmp_path / "whole", hooks=[helpers.dev_hook()])
        first = helpers.run(tmp_path / "parts", hooks=[helpers.dev_hook(), helpers.Stop(at)])
        assert first.interrupted
        assert first.stopped == "test"
        assert int(first.state.step) == at
        second = helpers.run(tmp_path / "parts", hooks=[helpers.dev_hook()])
        assert not second.interrupted
        assert second.steps_run == 20 - at
        helpers.assert_same_bits(second.state, whole.state)
        lines = [metrics_lib.read(tmp_path / n / "metrics.jsonl") for n in ("whole", "parts")]
        assert lines[0] == lines[1]
        assert len(lines[0]) == 10 + 4

    def test_run_killed_between_checkpoints_repeats_its_steps_exactly(self, tmp_path):
        whole = helpers.run(tmp_path / "whole")

        class Crash(training.Hook):
            order = 200

            def after_step(self, loop):
                if loop.step == 12:
                    raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            helpers.run(tmp_path / "parts", hooks=[Crash()])
        assert metrics_lib.read(tmp_path / "parts" / "metrics.jsonl")[-1]["step"] == 10
        second = helpers.run(tmp_path / "parts")
        assert second.steps_run == 20 - 7
        helpers.assert_same_bits(second.state, whole.state)
        lines = [metrics_lib.read(tmp_path / n / "metrics.jsonl") for n in ("whole", "parts")]
        assert lines[0] == lines[1]

    def test_finished_run_does_no_step(self, tmp_path):
        helpers.run(tmp_path, hooks=[helpers.dev_hook()])
        hook = helpers.dev_hook()
        again = helpers.run(tmp_path, hooks=[hook])
        assert again.steps_run == 0
        assert again.steps_per_second is None
        assert hook.last
        assert hook.best_value is not None

    def test_no_steps_only_evaluate(self, tmp_path):
        hook, (state, optimizer) = helpers.dev_hook(), helpers.start(helpers.LIGHTWEIGHT, 0)
        given = jax.tree.map(np.asarray, state)
        hooks = [hook, training.Checkpoint(every=1), training.Progress("none")]
        result = training.fit(
            state, None, None, optimizer=optimizer, steps=0, hooks=hooks, folder=tmp_path
        )
        assert (result.steps_run, result.traces, result.interrupted) == (0, 0, False)
        helpers.assert_same_bits(result.state, given)
        assert result.metrics == {f"dev/{name}": value for name, value in hook.last.items()}
        with pytest.raises(ValueError, match="steps=1 need data to train on"):
            training.fit(result.state, None, None, optimizer=optimizer, steps=1)
        with pytest.raises(ValueError, match="steps=-1 must be an integer of at least 0"):
            training.fit(result.state, None, None, optimizer=optimizer, steps=-1)

    def test_run_killed_after_its_last_checkpoint_still_ends_with_its_metrics(self, tmp_path):
        def hooks():
            return [helpers.dev_hook(every=0), training.Checkpoint(every=5, at_end=False)]

        whole = helpers.run(tmp_path, hooks=hooks())
        again = helpers.run(tmp_path, hooks=hooks())
        assert again.steps_run == 0
        assert again.metrics == whole.metrics
        assert {"loss", "dev/accuracy"} <= set(again.metrics)

    def test_run_restored_at_an_earlier_end_is_evaluated(self, tmp_path):
        helpers.run(tmp_path, hooks=[helpers.dev_hook(every=5), helpers.Stop(8)])
        hook = helpers.dev_hook(every=5)
        again = helpers.run(tmp_path, steps=8, hooks=[hook])
        assert hook.last_step == 8
        assert again.metrics["dev/accuracy"] == hook.last["accuracy"]
        assert metrics_lib.read(tmp_path / "metrics.jsonl")[-1] == {
            "step": 8,
            "dev/accuracy": hook.last["accuracy"],
        }

    def test_checkpoint_beyond_the_planned_steps(self, tmp_path):
        helpers.run(tmp_path, steps=9)
        with pytest.raises(ValueError, match="step 9, beyond steps=5"):
            helpers.run(tmp_path, steps=5)


class TestFreezing:
    def test_frozen_bit_equal_trained_moved_and_no_optimizer_state(self):
        model = helpers.Classifier()
        before = {
            p: np.asarray(x)
            for p, x in state_lib.flatten(nnx.to_pure_dict(nnx.state(model))).items()
        }
        result = helpers.run(steps=10)
        frozen = state_lib.flatten(result.state.frozen)
        trained = state_lib.flatten(result.state.trainable)
        assert list(frozen) == ["body/cores/1"]
        for path, leaf in frozen.items():
            np.testing.assert_array_equal(leaf, before[path])
        for path, leaf in trained.items():
            assert not np.array_equal(leaf, before[path]), f"{path} did not move"
        held = state_lib.flatten(result.state.optimizer)
        assert not [path for path in held if path.endswith("cores/1")]
        shapes = sorted(leaf.shape for leaf in held.values() if leaf.ndim)
        assert shapes == sorted(2 * [leaf.shape for leaf in trained.values()])

    def test_auxiliary_alone(self):
        result = helpers.run(steps=3, trainable=nn.AuxiliaryCore)
        assert list(state_lib.flatten(result.state.trainable)) == ["body/cores/0", "body/cores/2"]

    def test_filter_that_matches_nothing(self):
        with pytest.raises(ValueError, match=r"matches no variable of Classifier.*central"):
            helpers.start(nn.AdapterParam)

    def test_model_survives_donation(self):
        model = helpers.Classifier()
        optimizer = training.make_optimizer(helpers.config(), training.roles(model), 3)
        state = training.TrainState.create(model, ..., optimizer)
        training.fit(state, helpers.loss_fn, helpers.train_data(), optimizer=optimizer, steps=3)
        assert np.isfinite(model(jnp.ones((2, helpers.FEATURES)))).all()

    def test_shared_variable_is_one_leaf_and_stays_shared(self):
        model = helpers.Classifier()
        model.again = model.body.cores[0]
        optimizer = training.make_optimizer(helpers.config(), training.roles(model), 3)
        state = training.TrainState.create(model, helpers.LIGHTWEIGHT, optimizer)
        assert len(state_lib.flatten(state.trainable)) == 5
        merged = state.model()
        assert merged.again is merged.body.cores[0]


class TestStep:
    def test_traced_once_in_ten_steps(self):
        result = helpers.run(steps=10)
        assert result.traces == 1
        assert result.compile_seconds > 0
        assert result.steps_per_second > 0

    def test_accumulation_equals_the_whole_batch(self):
        whole = helpers.run(steps=5, loss=helpers.loss_without_noise)
        parts = helpers.run(steps=5, loss=helpers.loss_without_noise, grad_accum_steps=2)
        for path, leaf in state_lib.flatten(whole.state.trainable).items():
            other = state_lib.flatten(parts.state.trainable)[path]
            np.testing.assert_allclose(leaf, other, atol=2e-6, err_msg=path)
        assert parts.metrics["loss"] == pytest.approx(whole.metrics["loss"], abs=1e-6)

    def test_prepared_weights_get_the_same_gradients(self):
        def prepare(model):
            first, central, last = (core[...] for core in model.body.cores)
            return {
                "matrix": first @ central @ last,
                "bias": model.body.bias[...],
                "kernel": model.head["kernel"][...],
                "head_bias": model.head["bias"][...],
            }

        def prepared_loss(prepared, batch, key):
            def model(x, key):
                hidden = jnp.tanh(x @ prepared["matrix"] + prepared["bias"][None, :])
                return hidden @ prepared["kernel"] + prepared["head_bias"][None, :]

            return helpers.loss_without_noise(model, batch, key)

        plain = helpers.run(steps=5, loss=helpers.loss_without_noise)
        for grad_accum_steps in (1, 2):
            prepared = helpers.run(
                steps=5, loss=prepared_loss, precompute=prepare, grad_accum_steps=grad_accum_steps
            )
            for path, leaf in state_lib.flatten(plain.state.trainable).items():
                other = state_lib.flatten(prepared.state.trainable)[path]
                np.testing.assert_allclose(leaf, other, atol=5e-6, err_msg=path)

    def test_accumulate_must_divide(self):
        with pytest.raises(ValueError, match="16 rows cannot be split into grad_accum_steps=3"):
            helpers.run(steps=2, grad_accum_steps=3)

    def test_non_finite_loss_names_the_step_and_saves_nothing(self, tmp_path):
        def exploding(model, batch, key):
            loss, metrics = helpers.loss_fn(model, batch, key)
            return jnp.where(batch["bad"][0], jnp.nan, 1.0) * loss, metrics

        class Data:
            batch_size = 16

            def rows(self, step, rows):
                batch = helpers.train_data().rows(step, rows)
                return batch | {"bad": np.full(len(batch["labels"]), step == 7)}

        state, optimizer = helpers.start()
        with pytest.raises(training.NonFiniteLossError, match="loss of step 8 is nan"):
            training.fit(
                state,
                exploding,
                Data(),
                optimizer=optimizer,
                steps=20,
                hooks=[training.Checkpoint(every=4)],
                folder=tmp_path,
            )
        with training.Checkpoints(tmp_path / "checkpoints") as saved:
            assert saved.all_steps() == [4]

    def test_disk_full_while_metrics_are_written(self, tmp_path):
        def fill(loop):
            if loop.step == 9:
                loop._writer._lines._file.close()
                loop._writer._lines._file = open("/dev/full", "ab", buffering=0)  # noqa: SIM115

        hooks = [training.Call(fill), training.Checkpoint(every=4)]
        with pytest.raises(OSError, match=r"metrics.jsonl: the disk is full; free some space"):
            helpers.run(tmp_path / "full", hooks=hooks)
        again = helpers.run(tmp_path / "full", hooks=[training.Checkpoint(every=4)])
        whole = helpers.run(tmp_path / "whole", hooks=[training.Checkpoint(every=4)])
        assert again.steps_run == 12
        helpers.assert_same_bits(again.state, whole.state)
        paths = [tmp_path / name / "metrics.jsonl" for name in ("full", "whole")]
        assert paths[0].read_text() == paths[1].read_text()

    def test_infinite_gradient_of_a_finite_loss_is_never_saved(self, tmp_path):
        @jax.custom_vjp
        def explode(x, factor):
            return x

        explode.defvjp(lambda x, factor: (x, factor), lambda factor, g: (g * factor, 0.0 * factor))

        def loss_fn(model, batch, key):
            loss, metrics = helpers.loss_fn(model, batch, key)
            return explode(loss, batch["factor"][0]), metrics

        class Data:
            batch_size = 16

            def rows(self, step, rows):
                batch = helpers.train_data().rows(step, rows)
                factor = np.inf if step == 7 else 1.0
                return batch | {"factor": np.full(len(batch["labels"]), factor, np.float32)}

        state, optimizer = helpers.start()
        with pytest.raises(training.NonFiniteLossError, match="gradient norm of step 8 is"):
            training.fit(
                state,
                loss_fn,
                Data(),
                optimizer=optimizer,
                steps=20,
                hooks=[training.Checkpoint(every=4)],
                folder=tmp_path,
            )
        with training.Checkpoints(tmp_path / "checkpoints") as saved:
            assert saved.all_steps() == [4]


def test_compilation_is_announced_and_timed(caplog):
    """Once for each program: what is silent for long looks as if it hung."""
    with caplog.at_level("INFO", logger="absl"):
        result = helpers.run(steps=3)
    said = [r.getMessage() for r in caplog.records if "the training step" in r.getMessage()]
    assert said[0] == "compiling the training step ..."
    assert said[1].startswith("compiled the training step in ")
    assert len(said) == 2 * result.traces == 2
