"""Students of fewer layers than their teacher: made of its layers, and mapped to them."""

import dataclasses
import re
from collections.abc import Sequence

from mpojax import compression, models


def layer_map(chosen: Sequence[int], student_layers: int, teacher_layers: int) -> tuple[int, ...]:
    """The teacher's layer of each layer of the student.

    Args:
      chosen: the map; empty: evenly spread, ending with the teacher's last (12 to 6 layers: 1, 3,
        ..., 11, as in the authors' code).
      student_layers, teacher_layers: how many.

    Raises:
      ValueError: a map of another length, or with layers that the teacher lacks.
    """
    if not chosen:
        if student_layers > teacher_layers:
            raise ValueError(
                f"a student of {student_layers} layers and a teacher of {teacher_layers}: give a "
                "layer_map."
            )
        share = teacher_layers / student_layers
        return tuple(round((layer + 1) * share) - 1 for layer in range(student_layers))
    if len(chosen) != student_layers:
        raise ValueError(
            f"layer_map={tuple(chosen)} must name a layer of the teacher for each of the "
            f"{student_layers} layers of the student."
        )
    if wrong := [layer for layer in chosen if not 0 <= layer < teacher_layers]:
        raise ValueError(
            f"layer_map has {wrong[0]}; the teacher's layers are 0..{teacher_layers - 1}."
        )
    return tuple(chosen)


def starting_layers(
    chosen: Sequence[int], mapped: Sequence[int], teacher_layers: int
) -> tuple[int, ...]:
    """The teacher's layers with which a student starts.

    Args:
      chosen: these layers; empty: those that the student's layers are mapped to, so that it starts
        where it is pulled to.
      mapped: the map; empty: that of `layer_map` for half as many layers.
      teacher_layers: how many.
    """
    depth = len(mapped) or max(1, teacher_layers // 2)
    return tuple(chosen) or layer_map(mapped, depth, teacher_layers)


def with_layers(teacher: models.Model, layers: Sequence[int]) -> models.Model:
    """A dense model of some of the teacher's layers, with its embeddings, pooler and head.

    Raises:
      ValueError: a layer that the teacher lacks, or layers that share parameters.
    """
    depth = teacher.config.num_layers
    if not layers or any(not 0 <= layer < depth for layer in layers):
        raise ValueError(
            f"layers={tuple(layers)} must name layers of the teacher, which has 0..{depth - 1}."
        )
    if teacher.config.layer_groups is not None:
        raise ValueError("the teacher's layers share parameters; use models.unshared(teacher).")
    arrays, found = models.to_arrays(compression.merge(teacher)), {}
    for name, array in arrays.items():
        match = re.fullmatch(r"layers/(\d+)/(.*)", name)
        if match is None:
            found[name] = array
    for place, layer in enumerate(layers):
        start = f"layers/{layer}/"
        for name, array in arrays.items():
            if name.startswith(start):
                found[f"layers/{place}/{name.removeprefix(start)}"] = array
    config = dataclasses.replace(
        teacher.config, num_layers=len(layers), adapters=(), scan_boundaries=()
    )
    return models.from_arrays(config, {}, found)
