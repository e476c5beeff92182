"""The same numbers on every mesh, and rules that say what is wrong with them."""

from typing import ClassVar

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from mpojax import training
from mpojax.training import sharding
from mpojax.training import state as state_lib
from tests.training import helpers

RULES = training.Rules(
    (
        (r"body/cores/0", (None, "tensor")),
        (r"body/cores/1", ("tensor", None)),
        (r"head/kernel", ("tensor", None)),
    ),
    fsdp_min_size=1,
)

MESHES = {
    "1x1": {"data": 1},
    "8x1": {"data": 8},
    "4x2": {"data": 4, "tensor": 2},
    "fsdp": {"data": 2, "fsdp": 4},
    "all": {"data": 2, "fsdp": 2, "tensor": 2},
}


def mesh_of(name):
    sizes = MESHES[name]
    count = int(np.prod(list(sizes.values())))
    return training.make_mesh(sizes, jax.devices()[:count])


def run(name, folder=None, steps=10, hooks=()):
    evaluator = training.Evaluator(helpers.predict, training.accuracy)
    evaluate = training.Evaluate("dev", helpers.dev_data(), evaluator)
    return helpers.run(
        folder, steps=steps, mesh=mesh_of(name), rules=RULES, hooks=[evaluate, *hooks]
    )


def assert_close(one, other, tolerance=1e-6):
    for path, leaf in state_lib.flatten(one.arrays()).items():
        np.testing.assert_allclose(
            leaf, state_lib.flatten(other.arrays())[path], rtol=1e-5, atol=tolerance, err_msg=path
        )


@pytest.fixture(scope="module")
def alone():
    return run("1x1")


@pytest.mark.parametrize("name", [name for name in MESHES if name != "1x1"])
def test_every_mesh_gives_the_same_numbers(alone, name):
    result = run(name)
    assert result.traces == 1
    for key, value in alone.metrics.items():
        assert result.metrics[key] == pytest.approx(value, abs=1e-6), key
    assert_close(result.state, alone.state)


def test_state_is_really_split():
    result = run("all", steps=2)
    trainable = state_lib.flatten(result.state.trainable)
    optimizer = state_lib.flatten(result.state.optimizer)
    core = trainable["body/cores/0"]
    assert core.sharding.spec == P(None, "tensor")
    assert core.addressable_shards[0].data.shape == (helpers.FEATURES, 4)
    for name in ("mu", "nu"):
        moment = next(x for p, x in optimizer.items() if p.endswith(f"{name}/body/cores/0"))
        assert moment.sharding.spec == P(None, "tensor")
    assert trainable["body/cores/2"].sharding.spec == P(None, "fsdp")  # automatic, largest size
    assert state_lib.flatten(result.state.frozen)["body/cores/1"].sharding.spec == P("tensor", None)


@pytest.mark.parametrize(("first", "second"), [("8x1", "all"), ("all", "1x1"), ("fsdp", "4x2")])
def test_resume_on_another_mesh(alone, tmp_path, first, second):
    stop = training.Call(lambda loop: loop.request_stop("test"), every=5)
    stopped = run(first, tmp_path, hooks=[stop])
    assert int(stopped.state.step) == 5
    result = run(second, tmp_path)
    assert result.steps_run == 5
    assert_close(result.state, alone.state)
    assert result.metrics["dev/accuracy"] == alone.metrics["dev/accuracy"]


def test_resume_on_the_same_mesh_is_bit_equal(tmp_path):
    whole = run("all")
    run("all", tmp_path, hooks=[training.Call(lambda loop: loop.request_stop("test"), every=5)])
    helpers.assert_same_bits(run("all", tmp_path).state, whole.state)


class TestMesh:
    def test_default_is_all_on_data(self):
        mesh = training.make_mesh()
        assert dict(mesh.shape) == {"data": 8, "fsdp": 1, "tensor": 1, "expert": 1}
        assert dict(training.make_mesh({"tensor": 4}).shape)["data"] == 2
        assert dict(training.make_mesh({"data": 2, "expert": -1}).shape)["expert"] == 4

    @pytest.mark.parametrize(
        ("sizes", "message"),
        [
            ({"model": 2}, r"mesh axes: unknown 'model'"),
            ({"data": 3}, r"multiply to 3, but there are 8 device"),
            ({"tensor": 3}, r"multiply to 3, which does not divide the 8 .* \(data=-1 takes"),
            ({"tensor": 0}, r"must be at least 1"),
            ({"data": -1, "fsdp": -1}, r"one of them may be -1"),
            ({"tensor": 16}, r"multiply to 16, which does not divide the 8"),
        ],
    )
    def test_wrong_sizes(self, sizes, message):
        with pytest.raises(ValueError, match=message):
            training.make_mesh(sizes)

    def test_batch_must_divide(self):
        with pytest.raises(ValueError, match=r"batch_size=12 cannot be split .* multiple of 8"):
            sharding.local_rows(12, training.make_mesh())


class TestRules:
    PARAMETERS: ClassVar = {
        "a/kernel": jax.ShapeDtypeStruct((6, 8), np.float32),
        "a/bias": jax.ShapeDtypeStruct((8,), np.float32),
    }

    def specs(self, *table, strict=True, **mesh):
        rules = training.Rules(tuple(table), strict=strict, fsdp_min_size=16)
        return rules.specs(self.PARAMETERS, training.make_mesh(mesh or {"tensor": 4}))

    def test_first_match_decides(self):
        specs = self.specs((r"a/kernel", (None, "tensor")), (r".*", ()))
        assert specs == {"a/kernel": P(None, "tensor"), "a/bias": P()}

    def test_automatic_fsdp_spares_small_ones(self):
        assert self.specs(fsdp=4) == {"a/kernel": P(None, "fsdp"), "a/bias": P()}
        assert self.specs((r"a/kernel", (("fsdp", "data"),)), fsdp=2, data=1, tensor=4) == {
            "a/kernel": P(("fsdp", "data")),
            "a/bias": P(),
        }

    @pytest.mark.parametrize(
        ("rule", "message"),
        [
            ((r"b/.*", ()), r"patterns \['b/\.\*'\] decide for no parameter"),
            (
                (r"a/kernel", ("tensor",)),
                r"a/kernel: dimension 0 of size 6 cannot be split .*size 4",
            ),
            ((r"a/bias", (None, "tensor")), r"more dimensions than a/bias with shape \(8,\)"),
            ((r"a/bias", ("model",)), r"mesh axes: unknown 'model'"),
        ],
    )
    def test_wrong_rules(self, rule, message):
        with pytest.raises(ValueError, match=message):
            self.specs(rule)

    def test_not_strict_replicates(self):
        specs = self.specs((r"b/.*", ()), (r"a/kernel", ("tensor",)), strict=False)
        assert specs["a/kernel"] == P(None)
