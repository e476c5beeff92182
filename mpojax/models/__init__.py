"""Transformers built from `mpojax.layers`; no word about compression methods or file formats."""

from mpojax.models.arrays import (
    Model,
    array_shapes,
    count_parameters,
    from_arrays,
    reconfigure,
    to_arrays,
    variables,
    with_head,
)
from mpojax.models.config import POOLINGS, EncoderConfig, matrix_sizes
from mpojax.models.encoder import Encoder, EncoderLayer
from mpojax.models.heads import SequenceClassifier, build, pool
from mpojax.models.rebuild import merged

__all__ = [
    "POOLINGS",
    "Encoder",
    "EncoderConfig",
    "EncoderLayer",
    "Model",
    "SequenceClassifier",
    "array_shapes",
    "build",
    "count_parameters",
    "from_arrays",
    "matrix_sizes",
    "merged",
    "pool",
    "reconfigure",
    "to_arrays",
    "variables",
    "with_head",
]
