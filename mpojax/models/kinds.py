"""The kinds of models there are, by their settings."""

from collections.abc import Mapping

from flax import nnx

from mpojax import mpo
from mpojax.models import heads
from mpojax.models.config import EncoderConfig
from mpojax.models.decoder import LanguageModel
from mpojax.models.decoder_config import DecoderConfig, EncoderDecoderConfig
from mpojax.models.encoder_decoder import EncoderDecoder

Config = EncoderConfig | DecoderConfig | EncoderDecoderConfig
Model = (
    heads.Encoder
    | heads.SequenceClassifier
    | heads.SpanExtractor
    | heads.PretrainingModel
    | LanguageModel
    | EncoderDecoder
)


def build(
    config: Config, shapes: Mapping[str, mpo.MPOShape] | None = None, *, rngs: nnx.Rngs
) -> Model:
    """A random model of these settings; `shapes` gives the MPO form of any matrix, by path."""
    if isinstance(config, DecoderConfig):
        return LanguageModel(config, shapes, rngs=rngs)
    if isinstance(config, EncoderDecoderConfig):
        return EncoderDecoder(config, shapes, rngs=rngs)
    return heads.build(config, shapes, rngs=rngs)
