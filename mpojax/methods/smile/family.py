"""A base and what was fine-tuned from it, as arrays; checked before anything is computed."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from mpojax import models

# ||W_e - W|| / ||W|| over all matrices of two unrelated models is about the root of 2.
_UNRELATED = 1.0


@dataclasses.dataclass(frozen=True)
class Family:
    """Arrays of a base and of models that were fine-tuned from it, without their heads.

    Attributes:
      model: the base; without its pooler where a fine-tuning has none, which then comes with heads.
      names: of the fine-tuned models, for messages.
      base: {logical path: array}.
      tuned: one such dict for each name, of the same paths and shapes.
    """

    model: models.Model
    names: tuple[str, ...]
    base: dict[str, np.ndarray]
    tuned: tuple[dict[str, np.ndarray], ...]

    @classmethod
    def of(cls, base: models.Model, tuned: Mapping[str, models.Model] | Sequence[models.Model]):
        """Reads and checks them.

        Raises:
          ValueError: no model; one in MPO form or with adapters; one of another architecture, of
            another base, or one that equals the base.
        """
        if not isinstance(tuned, Mapping):
            tuned = {f"models[{index}]": model for index, model in enumerate(tuned)}
        if not tuned:
            raise ValueError("there is no model to combine: give one or more besides the base.")
        for name, model in {"the base": base, **tuned}.items():
            if model.shapes or model.config.adapters:
                raise ValueError(
                    f"{name} has matrices in MPO form or adapters; differences are those of dense "
                    "matrices: mpojax.merge(model) first."
                )
        base = _with_common_pooler(base, tuned.values())
        arrays = {name: _body(model) for name, model in tuned.items()}
        own = _body(base)
        for name, other in arrays.items():
            other = {
                path: array for path, array in other.items() if path in own or not _of_task(path)
            }
            _check_alike(name, own, other)
            arrays[name] = other
        return cls(base, tuple(tuned), own, tuple(arrays.values()))

    def differences(self, path: str) -> list[np.ndarray]:
        """W_e - W of each model, float64."""
        base = np.float64(self.base[path])
        return [np.float64(each[path]) - base for each in self.tuned]


def _with_common_pooler(base: models.Model, tuned: Iterable[models.Model]) -> models.Model:
    """The base, its pooler left out where one of the models was tuned without it."""
    poolings = {getattr(model.config, "pooling", None) for model in tuned}
    if getattr(base.config, "pooling", None) != "pooler" or poolings == {"pooler"}:
        return base
    arrays = models.to_arrays(base)
    kept = {path: array for path, array in arrays.items() if not path.startswith("pooler/")}
    return models.from_arrays(dataclasses.replace(base.config, pooling="mean"), {}, kept)


def _of_task(path: str) -> bool:
    """A pooler counts where the base has none: it came with the head."""
    return models.is_of_head(path) or path.startswith("pooler/")


def _body(model: models.Model) -> dict[str, np.ndarray]:
    return {path: a for path, a in models.to_arrays(model).items() if not models.is_of_head(path)}


def _check_alike(name: str, base: Mapping, other: Mapping) -> None:
    shapes, own = ({path: a.shape for path, a in each.items()} for each in (other, base))
    for path in [*own, *shapes]:
        if shapes.get(path) != own.get(path):
            raise ValueError(
                f"{name} is no fine-tuning of the base: {path} is {shapes.get(path, 'missing')} "
                f"there and {own.get(path, 'missing')} in the base."
            )
    matrices = [path for path, shape in own.items() if len(shape) == 2]
    squares = [
        (np.sum(np.square(np.float64(other[p]) - base[p])), np.sum(np.square(np.float64(base[p]))))
        for p in matrices
    ]
    error, norm = np.sum(squares, axis=0)
    distance = np.sqrt(error / norm)
    if distance > _UNRELATED:
        raise ValueError(
            f"{name} is {distance:.2f} of the base's norm away from it: it was fine-tuned from "
            "another base; give the one that its training started from."
        )
    if distance == 0.0:
        raise ValueError(f"{name} equals the base in every matrix: leave it out.")
