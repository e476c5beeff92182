"""Settings and shapes of encoders whose layers share central cores."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from mpojax import checks, models, mpo, nn

# Roles (`mpojax.nn.ROLES`) of what a layer may have for itself.
BIAS_AND_NORM = ("shared", "per_layer")
TARGETS = ("query", "key", "value", "out", "up", "down")

# The released code's lists for five cores, of both sides of a matrix. MPOP's differ for 768.
_FACTORS = {
    768: (4, 4, 4, 4, 3),
    1024: (4, 4, 4, 4, 4),
    3072: (4, 4, 8, 6, 4),
    4096: (4, 4, 8, 8, 4),
}

# Arguments of `settings` by name. The paper trains 12, 48 and 48+ (three blocks); its code also 24,
# on the way to 48; 96 is named as future work. The others are for comparison: every parameter of
# the layers shared, none shared, fewer cores.
VARIANTS: dict[str, dict[str, Any]] = {
    "mpobert12": {"num_layers": 12, "hidden_size": 768},
    "mpobert24": {"num_layers": 24, "hidden_size": 1024},
    "mpobert48": {"num_layers": 48, "hidden_size": 1024},
    "mpobert48plus": {"num_layers": 48, "hidden_size": 1024, "groups": 3},
    "mpobert96": {"num_layers": 96, "hidden_size": 1024},
    "mpobert24_768": {"num_layers": 24, "hidden_size": 768},
    "mpobert48_768": {"num_layers": 48, "hidden_size": 768},
    "all_shared12": {"num_layers": 12, "hidden_size": 768, "share_auxiliary": True},
    "unshared12": {"num_layers": 12, "hidden_size": 768, "groups": 12},
}


def variant(name: str, **changes) -> tuple[models.EncoderConfig, dict[str, mpo.MPOShape]]:
    """`settings` of a name in `VARIANTS`, with changes.

    Raises:
      ValueError: an unknown name, or see `settings`.
    """
    checks.check_names([name], VARIANTS, "variant of MPOBERT")
    return settings(**{**VARIANTS[name], **changes})


def settings(
    num_layers: int = 12,
    hidden_size: int = 768,
    *,
    groups: int = 1,
    num_cores: int = 5,
    bond: int | None = None,
    adapter_rank: int = 0,
    adapter_targets: Sequence[str] = ("query", "key", "value", "out"),
    adapt_outside: bool = False,
    share_auxiliary: bool = False,
    bias_and_norm: str = "shared",
    **encoder_fields,
) -> tuple[models.EncoderConfig, dict[str, mpo.MPOShape]]:
    """Settings and shapes of an MPOBERT, as `models.build` takes them.

    Args:
      num_layers: depth L.
      hidden_size: width H; by default the head size is 64 and the feed-forward width 4H.
      groups: G blocks of L / G layers, each with central cores of its own.
      num_cores: n of every matrix.
      bond: cap for every bond; None for full ones.
      adapter_rank: of the low-rank adapters in every layer; 0 for none.
      adapter_targets: names of the adapted matrices, of `TARGETS`. The paper's counts fit the
        default, on their own or with `adapt_outside`.
      adapt_outside: adapters for pooler and embedding map as well.
      share_auxiliary: auxiliary cores, too, are stored once for each block.
      bias_and_norm: "shared" by the layers of a block, or "per_layer".
      **encoder_fields: any field of `EncoderConfig`; defaults are those of ALBERT-base-v2, with the
        heads for masked words and sentence order.

    Raises:
      ValueError: a value that is impossible; says what is allowed.
    """
    fields = {
        "vocab_size": 30000,
        "embedding_size": 128,
        "num_heads": max(1, hidden_size // 64),
        "intermediate_size": 4 * hidden_size,
        "activation": "gelu_tanh",
        "dropout": 0.0,
        "attention_dropout": 0.0,
        "masked_lm": True,
        "num_labels": 2,
        **encoder_fields,
    }
    known = [field.name for field in dataclasses.fields(models.EncoderConfig)]
    checks.check_names(encoder_fields, known, "fields of the encoder")
    checks.check_value("bias_and_norm", bias_and_norm, checks.one_of(*BIAS_AND_NORM))
    shared = {"central": True, "auxiliary": share_auxiliary, "other": bias_and_norm == "shared"}
    # Without adapters their role is no one's: a model that shares all else then shares everything.
    shared["adapter"] = all(shared.values()) and not adapter_rank
    config = models.EncoderConfig(
        num_layers=num_layers,
        hidden_size=hidden_size,
        layer_groups=groups,
        shared_roles=tuple(role for role in nn.ROLES if shared[role]),
        adapters=_adapters(adapter_rank, adapter_targets, adapt_outside),
        **fields,
    )
    shapes = {
        path: chain(*size, num_cores).with_bonds(bond)
        for path, size in config.matrix_sizes().items()
        if path.startswith("layers/")
    }
    return config, shapes


def chain(in_features: int, out_features: int, num_cores: int = 5) -> mpo.MPOShape:
    """The full-bond shape of one matrix: the paper's factor lists, balanced ones where none are."""
    if num_cores == 5 and in_features in _FACTORS and out_features in _FACTORS:
        return mpo.MPOShape(_FACTORS[in_features], _FACTORS[out_features])
    published = mpo.MPOShape.published(in_features, out_features, num_cores)
    return published or mpo.MPOShape.balanced(in_features, out_features, num_cores)


def _adapters(rank: int, targets: Sequence[str], outside: bool) -> tuple[tuple[str, int], ...]:
    checks.check_names(targets, TARGETS, "adapter_targets")
    checks.check_value("adapter_rank", rank, checks.integer(0))
    if rank == 0:
        return ()
    patterns = [rf"layers/\d+/.*/({'|'.join(targets)})"] if targets else []
    patterns += ["pooler|embeddings/projection"] if outside else []
    if not patterns:
        raise ValueError(f"adapter_rank={rank} has nothing to adapt: name adapter_targets.")
    # One pattern, so that a model without its pooler keeps the rest.
    return (("|".join(patterns), rank),)
