"""Time on a chip from work of operations; slices of TPUs by name."""

import types

import jax
import jax.numpy as jnp
import pytest

from mpojax import devices, mpo, training
from mpojax.training.aot import estimate, hlo, topology

CHIP = devices.CHIPS["v5e"]


def made(**fields):
    work = hlo.Work("op", "fusion", "jit(step)/jvp()/dot_general", **{"times": 1} | fields)
    return estimate.Estimate(
        "v5e",
        4,
        estimate._parts([work], CHIP),
        estimate._exchanges([work], CHIP),
        2**30,
        0,
    )


class TestRoofline:
    def test_what_takes_longest_counts(self):
        assert made(flops=197_000_000_000).seconds == pytest.approx(1e-3)
        assert made(flops=1, bytes=810_000_000).seconds == pytest.approx(1e-3)
        assert made(flops=1, bytes=1, cycles=1_500_000, times=3).seconds == pytest.approx(3e-3)

    @pytest.mark.parametrize(
        ("kind", "group", "seconds"),
        [
            ("all-reduce", 4, 1.5e-3),
            ("all-gather", 4, 0.75e-3),
            ("reduce-scatter", 2, 0.5e-3),
            ("all-to-all", 4, 1e-3),
            ("collective-permute", 2, 2e-3),
            ("all-gather", 1, 0.0),
        ],
    )
    def test_exchanges_on_a_ring(self, kind, group, seconds):
        found = made(collective=kind, group=group, sent=90_000_000)
        assert found.interconnect == pytest.approx(seconds)
        assert found.exchanged_bytes == (90_000_000 if group > 1 else 0)
        assert found.on_chip == 0.0

    def test_utilisation_and_text(self):
        found = made(flops=197_000_000_000)
        assert found.utilisation(4 * 98.5e9) == pytest.approx(0.5)
        text = "\n".join(" ".join(row) for row in found.rows(4 * 98.5e9, 1000))
        for words in ("ESTIMATE for 4 x v5e", "1.000 ms", "50.0%", "1,000,000", "forward", "6%"):
            assert words in text


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("jit(_step)/jvp()/while/body/dot_general", "forward"),
        ("jit(_step)/transpose(jvp())/while/body/dot_general", "backward"),
        ("jit(_step)/transpose(jvp())/rematted_computation/tanh", "recomputation"),
        ("jit(_step)/mul", "optimizer and rest"),
    ],
)
def test_parts(name, part):
    assert estimate.part_of(name) == part


def test_the_compilers_error_about_memory():
    error = RuntimeError(
        "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space "
        "hbm. Used 17.31G of 15.75G hbm. Exceeded hbm capacity by 1.56G."
    )
    problem = estimate.as_does_not_fit(error)
    assert str(problem) == (
        "does not fit: needs 17.31 GiB of the 15.75 GiB of a chip, 1.56 GiB too much."
    )
    alone = RuntimeError(
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
        "temporaries (21.81G) exceeds available HBM (15.75G)."
    )
    assert "needs 21.81 GiB of the 15.75 GiB" in str(estimate.as_does_not_fit(alone))
    assert estimate.as_does_not_fit(RuntimeError("INTERNAL: something else")) is None


def test_arguments_and_temporaries_together_have_to_fit():
    sizes = {"output": 9, "alias": 9, "temp": 8.5, "generated_code": 0}  # GiB; the state is donated
    found = {f"{name}_size_in_bytes": int(size * 2**30) for name, size in sizes.items()}
    found["argument_size_in_bytes"] = 9 * 2**30
    compiled = types.SimpleNamespace(memory_analysis=lambda: types.SimpleNamespace(**found))
    with pytest.raises(estimate.DoesNotFitError, match=r"needs 17\.50 GiB of the 15\.75 GiB"):
        estimate.of_compiled(compiled, 4, "v5e")


class TestTopology:
    @pytest.mark.parametrize("name", ["v5e", "v9:2x4", "v5e:2by4", "v5e:2x4,", "tpu"])
    def test_unknown_names_list_the_known(self, name):
        with pytest.raises(ValueError, match=r"--topology='.*' must be CHIP:AxB .*v5e:4x8"):
            topology.chip(name)

    def test_without_the_compiler(self, monkeypatch):
        monkeypatch.setattr(topology, "is_installed", lambda: False)
        with pytest.raises(ImportError, match=r"pip install -e '\.\[tpu\]'"):
            topology.describe("v5e:2x4")


def test_meshes_of_described_devices():
    some = jax.devices()[:2]
    with devices.described(some):
        assert training.make_mesh().shape["data"] == 2
        with pytest.raises(ValueError, match=r"does not divide the 2 device"):
            training.make_mesh({"fsdp": 3})
    assert training.make_mesh().shape["data"] == jax.device_count()


def test_what_is_compiled_for_decides(monkeypatch):
    """The mesh in use, not the backend of this process."""
    described = types.SimpleNamespace(
        abstract_device=types.SimpleNamespace(device_kind="TPU v6 lite", platform="tpu")
    )
    assert (devices.platform(), devices.target()) == ("cpu", "cpu")
    monkeypatch.setattr(jax.sharding, "get_abstract_mesh", lambda: described)
    assert (devices.platform(), devices.target()) == ("tpu", "v6e")
    shape = mpo.MPOShape.published(768, 3072)
    assert mpo.plan(shape, tokens=64) == mpo.plan(shape, tokens=64, machine="v6e")


@pytest.mark.skipif(not topology.is_installed(), reason="libtpu is not installed: the extra tpu")
class TestCompiler:
    def test_slices(self):
        assert len(topology.describe("v5e:1x1")) == 1
        assert len(topology.describe("v6e:2x4")) == 8
        with pytest.raises(ValueError, match=r"'v5e:3x5': .* is not divisible .*; known: v5e:1x1"):
            topology.describe("v5e:3x5")

    @pytest.mark.slow
    def test_a_product(self):
        mesh = training.make_mesh({}, topology.describe("v5e:1x1"))
        x = jax.ShapeDtypeStruct((1024, 1024), jnp.bfloat16)
        with jax.set_mesh(mesh):
            assert devices.target() == "v5e"
            compiled = jax.jit(jnp.matmul).lower(x, x).compile()
        found = estimate.of_compiled(compiled, 1, "v5e")
        assert sum(part.flops for part in found.parts) == 2 * 1024**3
        assert 2 * 1024**3 / 197e12 < found.seconds < 4e-5
