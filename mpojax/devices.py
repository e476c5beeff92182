"""Accelerators: data sheets of chips, and which one the program being traced is for.

A step may be compiled on another machine than it runs on (`mpojax.training.aot`). What depends on
the device, such as plans of products, therefore asks for the devices of the mesh in use
(`jax.set_mesh`), and for jax's own only without a mesh.
"""

import contextlib
import contextvars
import dataclasses
import os
from collections.abc import Iterator, Sequence

import jax


@dataclasses.dataclass(frozen=True)
class Chip:
    """Data sheet of one chip.

    Attributes:
      kind: `device_kind` of jax's devices.
      platform: "tpu" or "gpu".
      flops: peak FLOP/s in bfloat16.
      hbm_bytes: memory that programs can use.
      hbm_bandwidth: bytes per second.
      link_bandwidth: bytes per second that a ring of chips moves, both directions together: along
        one axis of a TPU's torus, or over NVLink.
      clock: cycles per second of the compiler's estimates; 0 where it makes none.
    """

    kind: str
    platform: str
    flops: float
    hbm_bytes: int
    hbm_bandwidth: float
    link_bandwidth: float
    clock: float = 0.0


_GIB = 2**30
# TPUs: cloud.google.com/tpu/docs (v5e, v5p, v6e) for peak, HBM and its bandwidth; bandwidths of a
# link from "How to Scale Your Model" (jax-ml.github.io/scaling-book/tpus); usable HBM as the
# compiler tells when a program exceeds it; clocks are the ones at which a matrix unit reaches the
# peak. GPUs: data sheets of the SXM parts, dense bfloat16 (V100: float16).
CHIPS = {
    "v4": Chip("TPU v4", "tpu", 275e12, 32 * _GIB, 1.23e12, 9e10, 1.05e9),
    "v5e": Chip("TPU v5 lite", "tpu", 197e12, int(15.75 * _GIB), 8.1e11, 9e10, 1.5e9),
    "v5p": Chip("TPU v5", "tpu", 459e12, int(95.74 * _GIB), 2.77e12, 1.8e11, 1.75e9),
    "v6e": Chip("TPU v6 lite", "tpu", 918e12, int(31.25 * _GIB), 1.64e12, 1.8e11, 1.75e9),
    "v100": Chip("Tesla V100-SXM2-32GB", "gpu", 125e12, 32 * _GIB, 9e11, 3e11),
    "a100": Chip("NVIDIA A100-SXM4-80GB", "gpu", 312e12, 80 * 10**9, 2.04e12, 6e11),
    "h100": Chip("NVIDIA H100 80GB HBM3", "gpu", 989e12, 80 * 10**9, 3.35e12, 9e11),
    "h200": Chip("NVIDIA H200", "gpu", 989e12, 141 * 10**9, 4.8e12, 9e11),
}

_described: contextvars.ContextVar[tuple | None] = contextvars.ContextVar("described", default=None)


def num_cores() -> int:
    """CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def platform() -> str:
    """Platform that is compiled for, "cpu", "gpu" or "tpu": of the mesh in use, or jax's own.

    Example:
      >>> from mpojax import devices
      >>> devices.platform() == jax.default_backend()
      True
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    found = jax.default_backend() if device is None else device.platform
    return "gpu" if found in ("cuda", "rocm") else found


def target() -> str:
    """What is compiled for: a name of `CHIPS`, or the platform of a device that is not there."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    kind = jax.local_devices()[0].device_kind if device is None else device.device_kind
    return next((name for name, chip in CHIPS.items() if chip.kind == kind), platform())


def visible() -> list:
    """The devices that a mesh is made of: those that `described` gives, or jax's own."""
    return list(_described.get() or jax.devices())


@contextlib.contextmanager
def described(devices: Sequence) -> Iterator[None]:
    """Meshes made inside are of these devices, which need not be there."""
    token = _described.set(tuple(devices))
    try:
        yield
    finally:
        _described.reset(token)
