"""Encoders with own, stacked and shared parameters train alike on every mesh."""

import jax
import numpy as np
import pytest
from flax import nnx

from mpojax import models, training
from mpojax.training import sharding
from mpojax.training import state as state_lib
from mpojax.training.dry_run import program_flops
from tests.training import helpers, small_encoder

STEPS = 20
MESHES = {
    "1": {"data": 1},
    "8x1": {"data": 8},
    "4x2": {"data": 4, "fsdp": 2},
    "2x4": {"data": 2, "fsdp": 4},
    "2x2x2": {"data": 2, "fsdp": 2, "tensor": 2},
}


def mesh_of(name):
    count = int(np.prod(list(MESHES[name].values())))
    return training.make_mesh(MESHES[name], jax.devices()[:count])


def run(kind, mesh, folder=None, *, steps=STEPS, hooks=(), **more):
    losses = small_encoder.Losses()
    hooks = [losses, *hooks]
    result = small_encoder.run(kind, folder, steps=steps, mesh=mesh_of(mesh), hooks=hooks, **more)
    return losses.values, result


def resumed(kind, first, second, folder, at=10, **more):
    """The state of a run that was stopped on one mesh and went on on another."""
    hooks = [training.Checkpoint(), helpers.Stop(at=at)]
    _, stopped = run(kind, first, folder, hooks=hooks, **more)
    assert int(stopped.state.step) == at
    losses, result = run(kind, second, folder, hooks=[training.Checkpoint()], **more)
    assert result.steps_run == STEPS - at
    return losses, result


_alone = {}


def alone(kind, **more):
    key = kind, str(more)
    if key not in _alone:
        _alone[key] = run(kind, "1", **more)
    return _alone[key]


def assert_same_losses(kind, mesh, **more):
    losses, result = run(kind, mesh, **more)
    expected, _ = alone(kind, **more)
    assert len(losses) == STEPS
    assert result.traces == 1
    np.testing.assert_allclose(losses, expected, rtol=0, atol=1e-5)
    assert abs(expected[-1] - expected[0]) > 1e-2  # they move at all
    return result


def test_shared_cores_on_a_mesh_of_all_axes():
    """Also that they are there once, and really split."""
    result = assert_same_losses("shared", "2x2x2")
    leaves = state_lib.flatten(result.state.trainable)
    core = leaves["encoder/stacks/0/feed_forward/up/cores/1"]
    assert core.shape == (2, 4, 4, 8, 4)  # two groups, not four layers
    shard = core.addressable_shards[0].data
    assert shard.shape == (2, 2, 4, 8, 2)
    split = [path for path, leaf in leaves.items() if not leaf.is_fully_replicated]
    assert len(split) > 15
    moments = [
        leaf
        for path, leaf in state_lib.flatten(result.state.optimizer).items()
        if path.endswith("encoder/stacks/0/feed_forward/up/cores/1")
    ]
    assert [leaf.sharding for leaf in moments] == [core.sharding] * 2


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [name for name in MESHES if name != "1"])
@pytest.mark.parametrize("kind", list(small_encoder.KINDS))
def test_every_mesh_gives_the_same_losses(kind, mesh):
    assert_same_losses(kind, mesh)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lamb", "muon"])
@pytest.mark.parametrize("kind", ["dense", "shared"])
def test_optimizers_that_look_at_whole_layers(kind, name):
    optimizer = {"name": name}
    if name == "lamb":
        optimizer |= {"trust_bounds": (0.01, 0.9), "learning_rate": 3e-2}
    assert_same_losses(kind, "2x2x2", optimizer=optimizer)


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(small_encoder.KINDS))
def test_resume(kind, tmp_path):
    losses, whole = run(kind, "2x2x2")
    again, result = resumed(kind, "2x2x2", "2x2x2", tmp_path / "same")
    helpers.assert_same_bits(result.state, whole.state)
    assert again[-1] == losses[-1]
    for first, second in (("8x1", "2x4"), ("2x2x2", "1")):
        again, result = resumed(kind, first, second, tmp_path / f"{first}-{second}")
        np.testing.assert_allclose(again, alone(kind)[0][10:], rtol=0, atol=1e-5)


class TestAccumulation:
    # Of a student and its teacher: tests/methods/test_opdf.py.
    @pytest.mark.slow
    def test_matrices_are_rebuilt_once_however_many_micro_batches(self):
        """Counted in the program: `precompute` stands outside of the loop over micro-batches."""
        made = small_encoder.model("shared")
        optimizer = training.make_optimizer({}, training.roles(made), 20)
        mesh = training.make_mesh({"data": 1}, jax.devices()[:1])
        state = training.abstract_state(made, nnx.Param, optimizer)
        state = sharding.abstract(state, training.state_shardings(state, mesh))
        batch = small_encoder.Data().rows(0, slice(None))

        def count(grad_accum_steps, precompute):
            step = training.TrainStep(
                small_encoder.loss_fn,
                optimizer,
                grad_accum_steps=grad_accum_steps,
                precompute=precompute,
            )
            return program_flops(step.trace(state, batch).jaxpr)

        once = count(2, models.merged)
        assert count(8, models.merged) == once
        assert count(8, None) > count(2, None) > once

    @pytest.mark.slow
    def test_on_a_mesh(self):
        assert_same_losses("shared", "4x2", grad_accum_steps=2, precompute=models.merged)
