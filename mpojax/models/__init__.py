"""Transformers built from `mpojax.nn`; no word about compression methods or file formats."""

from mpojax.models.adapters import (
    adapter_arrays,
    adapter_filter,
    logical_arrays,
    scan_boundaries,
    stacked_arrays,
)
from mpojax.models.arrays import (
    array_shapes,
    central_cores,
    check_coverage,
    count_parameters,
    from_arrays,
    logical_names,
    reconfigure,
    to_arrays,
    unshared,
    variables,
    with_head,
)
from mpojax.models.capacity import dropless
from mpojax.models.columns import head_columns
from mpojax.models.config import HEADS, EncoderConfig
from mpojax.models.costs import model_flops
from mpojax.models.decoder import LanguageModel, LanguageModelOutput
from mpojax.models.decoder_config import DecoderConfig, EncoderDecoderConfig
from mpojax.models.encoder import Encoder
from mpojax.models.encoder_decoder import EncoderDecoder
from mpojax.models.encoder_layers import BottleneckLayer, EncoderLayer
from mpojax.models.generation import Generated, generate
from mpojax.models.heads import (
    ModelWithHead,
    PretrainingModel,
    SequenceClassifier,
    SpanExtractor,
    pool,
)
from mpojax.models.kinds import Config, Model, build
from mpojax.models.language_presets import LANGUAGE_PRESETS
from mpojax.models.matrices import (
    adaptable,
    adapter_settings,
    dense_name,
    feed_forwards,
    matrix_sizes,
)
from mpojax.models.presets import PRESETS
from mpojax.models.rebuild import merged
from mpojax.models.sampling import Sampling
from mpojax.models.tower import Cache

__all__ = [
    "HEADS",
    "LANGUAGE_PRESETS",
    "PRESETS",
    "BottleneckLayer",
    "Cache",
    "Config",
    "DecoderConfig",
    "Encoder",
    "EncoderConfig",
    "EncoderDecoder",
    "EncoderDecoderConfig",
    "EncoderLayer",
    "Generated",
    "LanguageModel",
    "LanguageModelOutput",
    "Model",
    "ModelWithHead",
    "PretrainingModel",
    "Sampling",
    "SequenceClassifier",
    "SpanExtractor",
    "adaptable",
    "adapter_arrays",
    "adapter_filter",
    "adapter_settings",
    "array_shapes",
    "build",
    "central_cores",
    "check_coverage",
    "count_parameters",
    "dense_name",
    "dropless",
    "feed_forwards",
    "from_arrays",
    "generate",
    "head_columns",
    "logical_arrays",
    "logical_names",
    "matrix_sizes",
    "merged",
    "model_flops",
    "pool",
    "reconfigure",
    "scan_boundaries",
    "stacked_arrays",
    "to_arrays",
    "unshared",
    "variables",
    "with_head",
]
