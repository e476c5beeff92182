"""Transformers built from `mpojax.layers`; no word about compression methods or file formats."""

from mpojax.models.arrays import (
    Model,
    array_shapes,
    central_cores,
    count_parameters,
    from_arrays,
    logical_names,
    reconfigure,
    to_arrays,
    unshared,
    variables,
    with_head,
)
from mpojax.models.columns import head_columns
from mpojax.models.config import HEADS, POOLINGS, EncoderConfig
from mpojax.models.costs import model_flops
from mpojax.models.decoder_config import DecoderConfig, EncoderDecoderConfig
from mpojax.models.encoder import Encoder
from mpojax.models.encoder_layers import BottleneckLayer, EncoderLayer
from mpojax.models.heads import (
    ModelWithHead,
    PretrainingModel,
    SequenceClassifier,
    SpanExtractor,
    build,
    pool,
)
from mpojax.models.matrices import adaptable, adapter_ranks, dense_name, matrix_sizes
from mpojax.models.presets import PRESETS
from mpojax.models.rebuild import merged

__all__ = [
    "HEADS",
    "POOLINGS",
    "PRESETS",
    "BottleneckLayer",
    "DecoderConfig",
    "Encoder",
    "EncoderConfig",
    "EncoderDecoderConfig",
    "EncoderLayer",
    "Model",
    "ModelWithHead",
    "PretrainingModel",
    "SequenceClassifier",
    "SpanExtractor",
    "adaptable",
    "adapter_ranks",
    "array_shapes",
    "build",
    "central_cores",
    "count_parameters",
    "dense_name",
    "from_arrays",
    "head_columns",
    "logical_names",
    "matrix_sizes",
    "merged",
    "model_flops",
    "pool",
    "reconfigure",
    "to_arrays",
    "unshared",
    "variables",
    "with_head",
]
