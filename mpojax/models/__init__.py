"""Transformers built from `mpojax.nn`; no word about compression methods or file formats."""

from mpojax.models.adapters import (
    adapter_arrays,
    adapter_filter,
    logical_arrays,
    scan_boundaries,
    stacked_arrays,
)
from mpojax.models.arrays import (
    abstract,
    array_shapes,
    build,
    central_cores,
    check_coverage,
    count_parameters,
    from_arrays,
    logical_names,
    to_arrays,
    variables,
)
from mpojax.models.block import Block, BottleneckBlock, Context
from mpojax.models.cache import Cache
from mpojax.models.config import (
    CONFIGS,
    HEADS,
    SETTINGS,
    Config,
    DecoderConfig,
    EncoderConfig,
    EncoderDecoderConfig,
    check_rules,
)
from mpojax.models.decoder import Decoder, LanguageModel, LanguageModelOutput
from mpojax.models.encoder import Encoder, self_attention_mask
from mpojax.models.encoder_decoder import EncoderDecoder, SourceEncoder
from mpojax.models.evaluation import (
    Perplexity,
    Speed,
    TokenScores,
    perplexity,
    speed,
    speeds,
    token_scores,
)
from mpojax.models.generation import Generated, generate
from mpojax.models.heads import (
    ModelWithHead,
    PretrainingModel,
    SequenceClassifier,
    TokenClassifier,
    pool,
    similarity,
)
from mpojax.models.matrices import (
    adapter_settings,
    dense_name,
    model_flops,
)
from mpojax.models.model import Model, predicts_next, writes_text
from mpojax.models.presets import PRESETS
from mpojax.models.rebuild import merged
from mpojax.models.sampling import Sampling
from mpojax.models.stored import StoredModel
from mpojax.models.variants import (
    dropless,
    head_columns,
    is_of_head,
    reconfigure,
    unshared,
    unstacked,
    with_head,
)

__all__ = [
    "CONFIGS",
    "HEADS",
    "PRESETS",
    "SETTINGS",
    "Block",
    "BottleneckBlock",
    "Cache",
    "Config",
    "Context",
    "Decoder",
    "DecoderConfig",
    "Encoder",
    "EncoderConfig",
    "EncoderDecoder",
    "EncoderDecoderConfig",
    "Generated",
    "LanguageModel",
    "LanguageModelOutput",
    "Model",
    "ModelWithHead",
    "Perplexity",
    "PretrainingModel",
    "Sampling",
    "SequenceClassifier",
    "SourceEncoder",
    "Speed",
    "StoredModel",
    "TokenClassifier",
    "TokenScores",
    "abstract",
    "adapter_arrays",
    "adapter_filter",
    "adapter_settings",
    "array_shapes",
    "build",
    "central_cores",
    "check_coverage",
    "check_rules",
    "count_parameters",
    "dense_name",
    "dropless",
    "from_arrays",
    "generate",
    "head_columns",
    "is_of_head",
    "logical_arrays",
    "logical_names",
    "merged",
    "model_flops",
    "perplexity",
    "pool",
    "predicts_next",
    "reconfigure",
    "scan_boundaries",
    "self_attention_mask",
    "similarity",
    "speed",
    "speeds",
    "stacked_arrays",
    "to_arrays",
    "token_scores",
    "unshared",
    "unstacked",
    "variables",
    "with_head",
    "writes_text",
]
