"""Batches of several tasks at once, as a pure function of (seed, step)."""

from collections.abc import Mapping, Sequence

import grain
import numpy as np

from mpojax import checks
from mpojax.data import pipeline


class Mixture(pipeline.TrainData):
    """Endless batches of several tasks: rows of `TrainData` with `task` (B,) int32 added to them.

    Every task has its own shuffled epochs. Tasks alternate in fixed proportions, to which any
    stretch of rows keeps within an example or two for each task. `labels` (B,) are float32: class
    numbers and scores alike.

    Args:
      tasks: {name: arrays of its N examples, as `Split.encode` gives them}; `task` in a batch is
        the place of the name.
      batch_size: rows of the global batch.
      seed: of the orders.
      exponent: a task's share is proportional to N ** exponent: 1 = to the sizes, 0 = equal shares.
      lengths: see `TrainData`.

    Attributes:
      sizes: {name: examples}.
      shares: {name: fraction of the rows}, of sum 1.

    Raises:
      ValueError: no tasks, an exponent outside 0..1, a task without labels or with several per
        example (spans), or tasks whose arrays do not fit together.
    """

    def __init__(
        self,
        tasks: Mapping[str, pipeline.Arrays],
        batch_size: int,
        *,
        seed: int,
        exponent: float = 1.0,
        lengths: Sequence[int] = (),
    ):
        checks.check_value("exponent", exponent, checks.number(0, 1).noted("0: equal, 1: by size"))
        arrays = _joined(tasks)
        self.sizes = {name: len(own["labels"]) for name, own in tasks.items()}
        weights = {name: float(size) ** exponent for name, size in self.sizes.items()}
        self.shares = {name: weight / sum(weights.values()) for name, weight in weights.items()}
        super().__init__(arrays, batch_size, seed=seed, lengths=lengths)

    def _endless(self, seed: int) -> grain.MapDataset:
        first = np.cumsum([0, *self.sizes.values()])
        # Seeds that do not follow each other: epochs count on from the seed of the first one.
        seeds = np.random.SeedSequence(seed).generate_state(len(self.sizes)) >> 1
        orders = [
            grain.MapDataset.source(np.arange(start, stop)).seed(int(own)).shuffle().repeat(None)
            for start, stop, own in zip(first[:-1], first[1:], seeds, strict=True)
        ]
        return grain.MapDataset.mix(orders, list(self.shares.values()))


def _joined(tasks: Mapping[str, pipeline.Arrays]) -> dict[str, np.ndarray]:
    """Examples of all tasks, one task after another."""
    if not tasks:
        raise ValueError("a mixture needs at least one task")
    first, arrays = next(iter(tasks.items()))
    for name, own in tasks.items():
        if "labels" not in own:
            raise ValueError(f"task {name!r} has no labels; mix splits with labels only")
        if np.ndim(own["labels"]) != 1:
            raise ValueError(
                f"task {name!r} has labels of shape {np.shape(own['labels'])}: a mixture takes one "
                "class or score per example; train on spans alone"
            )
        if not len(own["labels"]):
            raise ValueError(f"task {name!r} holds no examples")
        if set(own) != set(arrays):
            raise ValueError(
                f"task {name!r} has the arrays {sorted(own)}, {first!r} has {sorted(arrays)}; all "
                "tasks of a mixture need the same"
            )
        for key in own:
            if np.shape(own[key])[1:] != np.shape(arrays[key])[1:]:
                raise ValueError(
                    f"{key} of task {name!r} has rows of shape {np.shape(own[key])[1:]}, of "
                    f"{first!r} {np.shape(arrays[key])[1:]}; encode all with one max_length"
                )
    joined = {
        key: np.concatenate([own[key] for own in tasks.values()])
        for key in arrays
        if key != "labels"
    }
    # Classes and scores share one array; float32 holds class numbers exactly.
    joined["labels"] = np.concatenate([np.float32(own["labels"]) for own in tasks.values()])
    sizes = [len(own["labels"]) for own in tasks.values()]
    joined["task"] = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
    return joined
