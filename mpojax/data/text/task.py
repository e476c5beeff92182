"""Protocol of tasks: named splits of examples that a tokenizer turns into arrays."""

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any, Self

import numpy as np

from mpojax import checks


class Examples(abc.ABC):
    """One split of a task: N examples in memory."""

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def select(self, chosen: np.ndarray) -> Self:
        """The examples of the given indices, in that order."""

    @abc.abstractmethod
    def encode(self, tokenizer, max_length: int) -> dict[str, np.ndarray]:
        """Arrays for `TrainData`, `EvalData` and `Mixture`, one row per example or window."""

    def take(self, count: int, seed: int = 0) -> Self:
        """A fixed random sample of `count` examples; all of them if there are fewer, or for -1.

        Not the first ones: files are often sorted by label or source.

        Raises:
          ValueError: another count below 1.
        """
        checks.check({"count": count}, {"count": checks.integer(1) | checks.one_of(-1)}, "take")
        order = np.random.default_rng(seed).permutation(len(self))
        return self.select(np.sort(order[: None if count == -1 else count]))

    def split_off(self, count: int, seed: int = 0) -> tuple[Self, Self]:
        """(the rest, a fixed random sample of `count` examples).

        Raises:
          ValueError: nothing would be left.
        """
        if not 0 < count < len(self):
            raise ValueError(f"cannot split {count} examples off {len(self)}; both parts need some")
        order = np.random.default_rng(seed).permutation(len(self))
        return self.select(np.sort(order[count:])), self.select(np.sort(order[:count]))


def chosen_of(column: Any, chosen: np.ndarray) -> Any:
    """The entries of a column, an array, a sequence or None, at the given indices."""
    if column is None or isinstance(column, np.ndarray):
        return None if column is None else column[chosen]
    return [column[i] for i in chosen]


def check_lengths(columns: Mapping[str, Any]) -> None:
    """Checks that all columns that are not None are equally long."""
    lengths = {name: len(column) for name, column in columns.items() if column is not None}
    if len(set(lengths.values())) != 1:
        raise ValueError(f"{', '.join(columns)} must have equal lengths; got {lengths}")


@dataclasses.dataclass(frozen=True)
class Task:
    """A data set by its splits.

    Attributes:
      name: of the task.
      splits: {name: examples}.
    """

    name: str
    splits: Mapping[str, Any]

    def __getitem__(self, split: str) -> Any:
        """The examples of a split.

        Raises:
          ValueError: it is not there; says what is.
        """
        if split not in self.splits:
            raise ValueError(
                f"task {self.name!r} has no split {split!r}; has {sorted(self.splits)}"
            )
        return self.splits[split]
