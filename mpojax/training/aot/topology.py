"""TPU slices that are described, not there: what libtpu compiles for on any machine."""

import importlib.util
import os
import re

import jax
from jax.experimental import topologies

from mpojax import devices

# Slices that can be ordered, by chip; libtpu may know more.
SLICES = {
    "v5e": ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
    "v5p": ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8"),
    "v6e": ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
}
# Without these libtpu asks the network for the machine it is on, and admits one process at a time.
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


class MissingCompilerError(ImportError):
    """libtpu is not installed."""


def known() -> str:
    """All slices, for messages."""
    return ", ".join(f"{chip}:{dims}" for chip, each in SLICES.items() for dims in each)


def is_installed() -> bool:
    """Whether libtpu, and so the compiler for TPUs, is there."""
    return importlib.util.find_spec("libtpu") is not None


def chip(name: str) -> devices.Chip:
    """Data sheet of a topology's chip; of "v5e:4x8" that of v5e.

    Raises:
      ValueError: another name; lists the known ones.
    """
    if not re.fullmatch(rf"({'|'.join(SLICES)}):\d+(x\d+){{1,2}}", name):
        raise ValueError(f"--topology={name!r} must be CHIP:AxB or CHIP:AxBxC; known: {known()}.")
    return devices.CHIPS[name.partition(":")[0]]


def describe(name: str) -> list:
    """Devices of a slice, for meshes and `jit(...).lower(...).compile()`; none can hold an array.

    Args:
      name: such as "v5e:4x8".

    Raises:
      MissingCompilerError: names the extra to install.
      ValueError: a name that is not known; lists those that are.
    """
    chip(name)
    if not is_installed():
        raise MissingCompilerError(
            f"--topology={name}: the TPU compiler is not installed; pip install -e '.[tpu]'"
        )
    for variable, value in _ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    sizes = [int(size) for size in name.partition(":")[2].split("x")]
    # Hosts of up to 2 x 2 chips.
    bounds = (min(sizes[0], 2), min(sizes[1], 2), 1)
    try:
        made = topologies.get_topology_desc(
            platform="tpu", topology_name=name, chips_per_host_bounds=bounds
        )
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0].partition(": ")[2]
        raise ValueError(f"--topology={name!r}: {reason}; known: {known()}.") from error
    return list(made.devices)
