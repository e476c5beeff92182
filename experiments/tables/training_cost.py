"""FLOPs of the runs of a table, from sizes alone, and the time that they take on a device.

Model FLOPs, as model FLOP utilisation counts them: the dense model's matrix products, forward and
twice that backward, texts padded to their full length. What rebuilding matrices from their cores,
recomputation and second experts add is not in it; what buckets of shorter texts save neither.
"""

import dataclasses
import functools
import math

from experiments.tables import counts
from experiments.tables.cells import Cell
from experiments.tables.schema import EXAMPLES
from mpojax import checks, devices, models

# Peak FLOP/s of one device in its 16-bit format.
DEVICES = {
    f"tpu-{name}" if chip.platform == "tpu" else name: chip.flops
    for name, chip in devices.CHIPS.items()
}


@dataclasses.dataclass(frozen=True)
class Device:
    """A device, and the part of its 16-bit peak that training is assumed to reach (in float32).

    Raises:
      ValueError: an unknown device, or a utilisation outside (0, 1].
    """

    name: str = "a100"
    utilisation: float = 0.15

    def __post_init__(self):
        fields = {"--device": self.name, "--utilisation": self.utilisation}
        allowed = {"--device": checks.one_of(*DEVICES)}
        checks.check(fields, allowed | {"--utilisation": checks.number(above=0, high=1)})

    def hours(self, flops: float) -> float:
        """Device-hours of so many FLOPs."""
        # s = FLOPs / (peak * utilisation)
        return flops / (DEVICES[self.name] * self.utilisation) / 3600

    def __str__(self) -> str:
        peak = DEVICES[self.name] / 1e12
        return f"{self.name}, {peak:.0f} TFLOP/s at {self.utilisation:.0%} utilisation"


def steps(cell: Cell) -> int:
    """Steps of a run; of one that is squeezed, at most."""
    squeeze = cell.config.get("squeeze") or {}
    return cell.config.steps + squeeze.get("max_phases", 0) * squeeze.get("steps", 0)


def flops(cell: Cell) -> float:
    """Model FLOPs of a run: 3 forward passes a training example, one a development example."""
    config, model = cell.config, counts.model_config(cell.row, cell.config)
    length = config.max_length if _has_examples(cell) else config.length
    forward = forward_flops(model, length, config.get("target_length", 0))
    # 0: once, at the end.
    every = config.eval_every or steps(cell)
    evaluated = _development_examples(cell) * math.ceil(steps(cell) / every)
    return forward * (3 * steps(cell) * config.batch_size + evaluated)


def _has_examples(cell: Cell) -> bool:
    return bool(cell.config.get("task") or cell.config.get("tasks"))


def _development_examples(cell: Cell) -> int:
    """Examples of an evaluation; 0 where they are not known, as of plain text."""
    return sum(
        EXAMPLES[column.split].get(task, 0)
        for task, column in {column.task: column for column in cell.columns}.items()
    )


@functools.cache
def forward_flops(config: models.Config, length: int, target_length: int = 0) -> float:
    """FLOPs of one text forward, 2 a multiply-add.

    Args:
      config: of an encoder, a decoder, or an encoder-decoder.
      length, target_length: tokens of the (source) text, and of what a decoder adds to it.
    """
    return _forward_flops(config, length, target_length)


@functools.singledispatch
def _forward_flops(config: models.EncoderConfig, length: int, _) -> float:
    # model_flops has the backward pass at twice the forward one.
    return models.model_flops(config, 1, length) / 3


@_forward_flops.register
def _(config: models.DecoderConfig, length: int, _) -> float:
    layers = _elements(config.matrix_sizes(), "layers/")
    # Scores and their product with the values: 2 length * width multiply-adds a token and layer.
    attention = 2 * config.num_layers * length * config.hidden_size
    return 2 * length * (layers + attention + config.hidden_size * config.vocab_size)


@_forward_flops.register
def _(config: models.EncoderDecoderConfig, length: int, target_length: int) -> float:
    sizes = config.matrix_sizes()
    head = config.hidden_size * config.vocab_size
    # A source token passes the encoder and the keys and values of the cross-attention.
    memory = _elements(sizes, "decoder/", ("cross_attention/key", "cross_attention/value"))
    attention = 2 * config.num_layers * length * config.hidden_size
    source = _elements(sizes, "encoder/") + memory + attention
    # Per target token: scores and values over the source (cross-attention) and over the target.
    across = 2 * config.num_decoder_layers * (length + target_length) * config.hidden_size
    # Keys and values of the cross-attention are computed once, of the source alone.
    target = _elements(sizes, "decoder/") - memory + across + head
    return 2 * (length * source + target_length * target)


def _elements(sizes: dict, prefix: str, endings: tuple[str, ...] = ("",)) -> int:
    paths = [path for path in sizes if path.startswith(prefix) and path.endswith(endings)]
    return sum(math.prod(sizes[path]) for path in paths)
