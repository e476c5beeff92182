"""The matrices of a model by path: their sizes, which may be MPO, which may have adapters."""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mpojax import mpo
from mpojax.nn.adapter_settings import AdapterSettings

if TYPE_CHECKING:
    from mpojax.models.config import EncoderConfig
    from mpojax.models.decoder_config import DecoderConfig, EncoderDecoderConfig

    Config = EncoderConfig | DecoderConfig | EncoderDecoderConfig

# Matrices that are looked up by row; all others are multiplied with.
TABLES = ("embeddings/word", "embeddings/position", "embeddings/token_type")


def matrix_sizes(config: "Config") -> dict[str, tuple[int, int]]:
    """Every matrix of the model: {matrix path: (in_features, out_features)}, in model order.

    Each may be dense or MPO. A table counts as (rows, features). The matrices of all experts of a
    block have one path and one size.
    """
    kind = type(config).__name__
    if kind == "EncoderConfig":
        return _encoder_matrix_sizes(config)
    if kind == "DecoderConfig":
        return _decoder_matrix_sizes(config)
    return _encoder_decoder_matrix_sizes(config)


def _encoder_matrix_sizes(config: "EncoderConfig") -> dict[str, tuple[int, int]]:
    hidden = config.hidden_size
    word_width = config.embedding_size or hidden
    other_width = hidden if config.projection == "word" else word_width
    sizes = {
        "embeddings/word": (config.vocab_size, word_width),
        "embeddings/position": (config.max_positions, other_width),
    }
    if config.token_types:
        sizes["embeddings/token_type"] = (config.token_types, other_width)
    if config.embedding_size is not None:
        sizes["embeddings/projection"] = (word_width * (3 if config.trigram_input else 1), hidden)
    in_layer = _layer_matrix_sizes(config)
    for layer in config.matrix_layers:
        sizes.update({f"layers/{layer}/{name}": size for name, size in in_layer.items()})
    if config.pooling == "pooler":
        sizes["pooler"] = (hidden, hidden)
    if config.num_labels is not None:
        sizes["head"] = (hidden, config.num_labels)
    if config.masked_lm:
        sizes["masked_lm/transform"] = (hidden, word_width)
    return sizes


def _layer_matrix_sizes(config: "EncoderConfig") -> dict[str, tuple[int, int]]:
    hidden, width, inner = config.hidden_size, config.attention_size, config.intermediate_size
    has_bottleneck = config.bottleneck_size is not None
    sizes = {}
    if has_bottleneck:
        sizes["bottleneck/input"] = (hidden, width)
        if not config.bottleneck_attention:
            sizes["bottleneck/attention"] = (hidden, width)
    sizes.update({f"attention/{name}": (width, width) for name in ("query", "key", "value", "out")})
    if not config.bottleneck_attention:
        sizes["attention/value"] = (hidden, width)
    for i in range(config.num_feed_forwards):
        name = f"feed_forwards/{i}" if has_bottleneck else "feed_forward"
        sizes[f"{name}/up"] = (width, inner)
        sizes[f"{name}/down"] = (inner, width)
    if has_bottleneck:
        sizes["bottleneck/output"] = (width, hidden)
    return sizes


def _decoder_matrix_sizes(config: "DecoderConfig") -> dict[str, tuple[int, int]]:
    hidden = config.hidden_size
    sizes = {"embeddings/word": (config.vocab_size, hidden)}
    if config.positions == "learned":
        sizes["embeddings/position"] = (config.max_positions, hidden)
    in_layer = _attention_sizes("attention", config, config.num_kv_heads)
    in_layer |= _feed_forward_sizes(config)
    for layer in range(config.num_layers):
        sizes.update({f"layers/{layer}/{name}": size for name, size in in_layer.items()})
    if not config.tied:
        sizes["head"] = (hidden, config.vocab_size)
    return sizes


def _encoder_decoder_matrix_sizes(config: "EncoderDecoderConfig") -> dict[str, tuple[int, int]]:
    sizes = {"embeddings/word": (config.vocab_size, config.hidden_size)}
    attention = _attention_sizes("attention", config, config.num_heads)
    cross = _attention_sizes("cross_attention", config, config.num_heads)
    feed_forward = _feed_forward_sizes(config)
    for tower, depth, in_layer in (
        ("encoder", config.num_layers, attention | feed_forward),
        ("decoder", config.num_decoder_layers, attention | cross | feed_forward),
    ):
        for layer in range(depth):
            start = f"{tower}/layers/{layer}"
            sizes.update({f"{start}/{name}": size for name, size in in_layer.items()})
    if not config.tied:
        sizes["head"] = (config.hidden_size, config.vocab_size)
    return sizes


def _attention_sizes(name: str, config, kv_heads: int) -> dict[str, tuple[int, int]]:
    hidden, head = config.hidden_size, config.head_size
    wide, narrow = config.num_heads * head, kv_heads * head
    return {
        f"{name}/query": (hidden, wide),
        f"{name}/key": (hidden, narrow),
        f"{name}/value": (hidden, narrow),
        f"{name}/out": (wide, hidden),
    }


def _feed_forward_sizes(config) -> dict[str, tuple[int, int]]:
    hidden, inner = config.hidden_size, config.intermediate_size
    sizes = {"feed_forward/up": (hidden, inner)}
    if config.gated:
        sizes["feed_forward/gate"] = (hidden, inner)
    return sizes | {"feed_forward/down": (inner, hidden)}


def feed_forwards(config: "Config") -> list[str]:
    """Paths of the feed-forward blocks, such as layers/0/feed_forward."""
    ups = (path for path in matrix_sizes(config) if path.endswith("/up"))
    return [path.removesuffix("/up") for path in ups]


def dense_name(path: str) -> str:
    """Name of the array of a matrix that is dense: `<path>/table` or `<path>/kernel`."""
    return f"{path}/table" if path in TABLES else f"{path}/kernel"


def adaptable(config: "Config") -> list[str]:
    """Paths of the matrices that may have an adapter: all but tables, heads and experts."""
    without = (*TABLES, "head", "masked_lm/transform")
    paths = [path for path in matrix_sizes(config) if path not in without]
    if not getattr(config, "experts", ()):
        return paths
    return [path for path in paths if not config.experts_of(path.rpartition("/")[0])]


def check_adapters(config: "Config") -> None:
    """Raises ValueError for adapters whose pattern matches no matrix.

    What is tuned in place names arrays, which settings alone do not know.
    """
    paths = adaptable(config)
    for pattern, settings in config.adapters:
        if not settings.in_place and not any(re.fullmatch(pattern, path) for path in paths):
            raise ValueError(
                f"adapters: {pattern!r} matches no matrix; it must match a whole path such as "
                f"{paths[0]} (tables, heads and experts have no adapters)."
            )


def adapter_settings(config: "Config") -> dict[str, AdapterSettings]:
    """{matrix path: settings} of the adapters that are added to matrices."""
    found = {}
    # Compiled once: Python keeps no more than 512 patterns.
    added = [(re.compile(pattern), s) for pattern, s in config.adapters if not s.in_place]
    for path in adaptable(config) if added else ():
        matching = [settings for pattern, settings in added if pattern.fullmatch(path)]
        if matching:
            found[path] = matching[0]
    return found


def under(entries: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Entries whose path starts with `prefix`, with the prefix taken off."""
    return {path[len(prefix) :]: e for path, e in entries.items() if path.startswith(prefix)}


def checked_shapes(
    config: "Config", shapes: Mapping[str, mpo.MPOShape] | None
) -> dict[str, mpo.MPOShape]:
    """`shapes` as a dict, after checking each against the matrix it is for.

    Raises:
      ValueError: a path that is no matrix of the model, or a shape of another size.
    """
    sizes = matrix_sizes(config)
    problems = []
    for path, shape in (shapes or {}).items():
        if path not in sizes:
            problems.append(f"{path} is no matrix of this model")
        elif (shape.in_features, shape.out_features) != sizes[path]:
            problems.append(
                f"{path} is {sizes[path][0]} x {sizes[path][1]}, its shape is for "
                f"{shape.in_features} x {shape.out_features}"
            )
    if problems:
        raise ValueError(
            f"shapes do not fit the model: {'; '.join(problems)}. Matrix paths look like "
            "embeddings/word, layers/0/attention/query, layers/0/feed_forward/up, pooler, head."
        )
    return dict(shapes or {})
