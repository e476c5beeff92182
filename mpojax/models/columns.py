"""A classifier on some of the outputs of another one."""

import dataclasses

import numpy as np

from mpojax import mpo
from mpojax.models import arrays as arrays_lib
from mpojax.models.heads import SequenceClassifier


def head_columns(
    model: SequenceClassifier, start: int, stop: int, *, scale: float = 1.0, shift: float = 0.0
) -> SequenceClassifier:
    """The model whose outputs are `scale * outputs[start:stop] + shift` of `model`.

    A linear head on the same sentence vector is a set of independent columns, thus the smaller
    model gives just these outputs. A head in MPO form becomes dense: its columns share cores.

    Raises:
      ValueError: the model has no classifier's head, or not these columns.
    """
    if not isinstance(model, SequenceClassifier):
        raise ValueError(
            f"only a SequenceClassifier has outputs to choose from, not a {type(model).__name__}."
        )
    if not 0 <= start < stop <= model.config.num_labels:
        raise ValueError(
            f"columns {start}:{stop} must be some of the head's {model.config.num_labels}."
        )
    arrays = arrays_lib.to_arrays(model)
    shape = model.shapes.get("head")
    if shape is not None:
        cores = [arrays.pop(f"head/cores/{i}") for i in range(len(shape.core_shapes))]
        arrays["head/kernel"] = np.asarray(mpo.to_matrix(cores, shape))
    for name in ("head/kernel", "head/bias"):
        arrays[name] = arrays[name][..., start:stop] * np.float32(scale)
    arrays["head/bias"] = arrays["head/bias"] + np.float32(shift)
    names = model.config.label_names[start:stop]
    config = dataclasses.replace(model.config, num_labels=stop - start).with_label_names(names)
    shapes = {path: shape for path, shape in model.shapes.items() if path != "head"}
    return arrays_lib.from_arrays(config, shapes, arrays)
