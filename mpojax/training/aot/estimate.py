"""Estimated time of a compiled step on the chip that it is compiled for.

A roofline, operation by operation: max(FLOPs / peak, bytes / bandwidth, the compiler's cycles /
clock), times the turns of the loops around it. Where the compiler gives no cycles, the bytes of
arrays on the chip count like others. Copies that it starts ahead run meanwhile, as far as the
bandwidth allows; exchanges between chips come on top. Kernels that the compiler cannot look into
count by their FLOPs and bytes, at peak. An estimate: nothing ran. It knows neither input pipelines
nor waiting.
"""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

from mpojax import devices
from mpojax.training.aot import hlo


@dataclasses.dataclass(frozen=True)
class Part:
    """Work of one part of a step on each chip, and the seconds that it is estimated to take."""

    name: str
    flops: int = 0
    bytes: int = 0
    seconds: float = 0.0

    def __add__(self, other: "Part") -> "Part":
        flops, moved = self.flops + other.flops, self.bytes + other.bytes
        return Part(self.name, flops, moved, self.seconds + other.seconds)


@dataclasses.dataclass(frozen=True)
class Exchange:
    """All collectives of one kind: how often, the bytes of their arrays in all, and seconds."""

    kind: str
    times: int
    bytes: int
    seconds: float


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What a step is estimated to cost.

    Attributes:
      chip: name of the chip, see `mpojax.devices.CHIPS`.
      num_chips: of the mesh.
      parts: work on one chip: "forward", "backward", "recomputation", "optimizer and rest".
      exchanges: by kind.
      peak_bytes: memory of one chip that the compiler plans; None where it does not tell.
      unknown_loops: loops of unknown length, which count once.
    """

    chip: str
    num_chips: int
    parts: tuple[Part, ...]
    exchanges: tuple[Exchange, ...]
    peak_bytes: int | None
    unknown_loops: int

    @property
    def compute(self) -> float:
        """Seconds of the FLOPs alone, at peak."""
        return sum(part.flops for part in self.parts) / devices.CHIPS[self.chip].flops

    @property
    def memory(self) -> float:
        """Seconds of the bytes alone."""
        return sum(part.bytes for part in self.parts) / devices.CHIPS[self.chip].hbm_bandwidth

    @property
    def interconnect(self) -> float:
        """Seconds of the exchanges alone."""
        return sum(exchange.seconds for exchange in self.exchanges)

    @property
    def exchanged_bytes(self) -> int:
        """Bytes of the arrays of all exchanges of a step, on each chip."""
        return sum(exchange.bytes for exchange in self.exchanges)

    @property
    def on_chip(self) -> float:
        """Seconds without exchanges: the step, if all of them ran behind something else."""
        return max(self.memory, sum(part.seconds for part in self.parts))

    @property
    def seconds(self) -> float:
        """Seconds of the step, exchanges not overlapped."""
        return self.on_chip + self.interconnect

    def utilisation(self, flops: float) -> float:
        """Part of all chips' peak that so many FLOPs of a step are: MFU of model FLOPs."""
        return flops / (self.seconds * self.num_chips * devices.CHIPS[self.chip].flops)

    def summary(self, model_flops: float | None, tokens: int) -> dict[str, Any]:
        """All of it as numbers, JSON-able."""
        names = ("compute", "memory", "interconnect", "exchanged_bytes", "on_chip", "seconds")
        return dataclasses.asdict(self) | {
            **{name: getattr(self, name) for name in names},
            "tokens_per_second": tokens / self.seconds,
            "mfu": None if model_flops is None else self.utilisation(model_flops),
        }

    def rows(self, model_flops: float | None, tokens: int) -> list[tuple[str, str, str]]:
        """Lines of a report: (what, value, note)."""
        chip = devices.CHIPS[self.chip]
        rows = [(f"ESTIMATE for {self.num_chips} x {self.chip} (nothing ran)", "", "")]
        if self.peak_bytes is not None:
            part = self.peak_bytes / chip.hbm_bytes
            note = f"{part:.0%} of {chip.hbm_bytes / 2**30:.2f} GiB"
            rows += [("  memory of one chip", f"{self.peak_bytes / 2**30:,.2f} GiB", note)]
        note = f"{_ms(self.on_chip)} if all exchanges are hidden"
        rows += [("  step", _ms(self.seconds), note)]
        rows += [("    compute alone", _ms(self.compute), f"at {chip.flops / 1e12:.0f} TFLOP/s")]
        rows += [("    memory alone", _ms(self.memory), f"at {chip.hbm_bandwidth / 1e9:.0f} GB/s")]
        share = self.interconnect / self.seconds if self.seconds else 0.0
        note = f"{share:.0%} of the step, {self.exchanged_bytes / 2**20:,.1f} MiB exchanged a chip"
        rows += [("    interconnect alone", _ms(self.interconnect), note)]
        rows += [("  tokens/s", f"{tokens / self.seconds:,.0f}", f"{tokens:,} tokens a step")]
        if model_flops is not None:
            mfu = f"{self.utilisation(model_flops):.1%}"
            rows += [("  MFU", mfu, "by the dense model's FLOPs")]
        rows += [("  parts, of one chip", "", "")]
        for part in self.parts:
            note = f"{part.flops / 1e12:.4g} TFLOP, {part.bytes / 2**30:.4g} GiB moved"
            rows += [(f"    {part.name}", _ms(part.seconds), note)]
        for exchange in self.exchanges:
            note = f"{exchange.times} times, {exchange.bytes / 2**20:,.1f} MiB"
            rows += [(f"    {exchange.kind}", _ms(exchange.seconds), note)]
        if self.unknown_loops:
            rows += [("    loops of unknown length", str(self.unknown_loops), "counted once")]
        return rows


def of_compiled(compiled: Any, num_chips: int, chip: str) -> Estimate:
    """Reads a compiled step.

    Args:
      compiled: from `jit(...).lower(...).compile()`.
      num_chips: of its mesh.
      chip: name of the chip, see `mpojax.devices.CHIPS`.

    Raises:
      DoesNotFitError: it needs more memory than the chip has.
    """
    peak, capacity = _peak_bytes(compiled), devices.CHIPS[chip].hbm_bytes
    # The TPU compiler was seen to accept arguments and temporaries that exceed it together.
    if peak is not None and peak > capacity:
        raise DoesNotFitError(peak, capacity)
    program = hlo.Program(compiled.as_text())
    works = program.work()
    return Estimate(
        chip,
        num_chips,
        _parts(works, devices.CHIPS[chip]),
        _exchanges(works, devices.CHIPS[chip]),
        peak,
        program.unknown_loops,
    )


_PARTS = ("forward", "backward", "recomputation", "optimizer and rest")


def part_of(op_name: str) -> str:
    """Part of a step that an operation is of, by the name that jax gives it."""
    if "rematted_computation" in op_name:
        return "recomputation"
    if "transpose(" in op_name:
        return "backward"
    return "forward" if "jvp(" in op_name else "optimizer and rest"


def _parts(works: Sequence[hlo.Work], chip: devices.Chip) -> tuple[Part, ...]:
    parts = {name: Part(name) for name in _PARTS}
    for work in works:
        if not work.collective:
            name = part_of(work.op_name)
            times, seconds = work.times, _seconds(work, chip)
            parts[name] += Part(name, times * work.flops, times * work.bytes, times * seconds)
    return tuple(part for part in parts.values() if part.seconds or part.bytes)


def _seconds(work: hlo.Work, chip: devices.Chip) -> float:
    # A copy that the compiler starts ahead runs behind other work.
    if work.opcode.endswith("-start"):
        return 0.0
    if chip.clock and not work.cycles:
        return max(work.flops / chip.flops, work.touched / chip.hbm_bandwidth)
    cycles = work.cycles / chip.clock if chip.clock else 0.0
    return max(work.flops / chip.flops, work.bytes / chip.hbm_bandwidth, cycles)


def _exchanges(works: Sequence[hlo.Work], chip: devices.Chip) -> tuple[Exchange, ...]:
    found: dict[str, Exchange] = {}
    for work in works:
        if work.collective and work.group > 1:
            one = found.get(work.collective, Exchange(work.collective, 0, 0, 0.0))
            seconds = work.sent * _steps(work.collective, work.group) / chip.link_bandwidth
            found[work.collective] = Exchange(
                one.kind,
                one.times + work.times,
                one.bytes + work.times * work.sent,
                one.seconds + work.times * seconds,
            )
    return tuple(found.values())


def _steps(kind: str, group: int) -> float:
    """How often a ring of `group` chips moves the bytes of an array, in both directions at once."""
    around = (group - 1) / group
    if kind == "all-reduce":
        return 2 * around  # scatters sums, then gathers them
    if kind in ("all-to-all", "ragged-all-to-all"):
        return group / 4  # each part goes a quarter of the ring on average
    if kind == "collective-permute":
        return 2.0  # to one neighbour: half of the bandwidth
    return around


def _peak_bytes(compiled: Any) -> int | None:
    found = compiled.memory_analysis()
    if found is None:
        return None
    arguments = found.argument_size_in_bytes + found.output_size_in_bytes
    # Donated buffers are arguments and results at once.
    arguments -= found.alias_size_in_bytes
    return arguments + found.temp_size_in_bytes + found.generated_code_size_in_bytes


class DoesNotFitError(ValueError):
    """A program needs more memory than its chip has.

    Attributes:
      used, capacity: bytes of one chip.
    """

    def __init__(self, used: float, capacity: float):
        self.used, self.capacity = used, capacity
        sizes = [f"{size / 2**30:.2f} GiB" for size in (used, capacity, used - capacity)]
        super().__init__(
            f"does not fit: needs {sizes[0]} of the {sizes[1]} of a chip, {sizes[2]} too much."
        )


_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def as_does_not_fit(error: Exception) -> DoesNotFitError | None:
    """What the TPU compiler's error says about memory; None if it is about something else."""
    size = r"([\d.]+)([KMGT]?)"
    # Of the whole program; or of its temporaries alone, where these are too many already.
    texts = rf"Used {size} of {size} hbm", rf"HLO temporaries \({size}\) exceeds.*\({size}\)"
    found = next(filter(None, (re.search(text, str(error)) for text in texts)), None)
    if found is None:
        return None
    used, unit, capacity, other = found.groups()
    return DoesNotFitError(float(used) * _UNITS[unit], float(capacity) * _UNITS[other])


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:,.3f} ms"
