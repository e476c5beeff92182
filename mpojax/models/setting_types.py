"""The type of every setting of a model, said once: for settings in code and in files."""

import dataclasses

from mpojax import checks, patterns
from mpojax.checks import anything, flag, integer, mapping, null, number, sequence, text

_SIZES = (
    *("vocab_size", "hidden_size", "num_layers", "num_heads", "intermediate_size"),
    *("max_positions", "num_feed_forwards", "num_kv_heads", "head_size", "num_decoder_layers"),
    *("relative_buckets", "relative_distance"),
)
_OPTIONAL_SIZES = ("num_labels", "embedding_size", "bottleneck_size", "layer_groups")
_NUMBERS = (
    *("norm_eps", "dropout", "attention_dropout", "embedding_dropout"),
    *("adapter_scale", "rotary_base"),
)
_FLAGS = (
    *("trigram_input", "masked_lm", "bottleneck_attention", "remat", "gated", "tied"),
    *("attention_bias", "attention_out_bias", "feed_forward_bias", "scale_logits"),
)
_NAMES = (
    *("activation", "norm", "pooling", "pooler_activation", "head", "projection", "positions"),
    "dtype",
)
_TEXTS = ("source_config", "source_generation_config")
_TOKENS = ("pad_id", "bos_id", "decoder_start_id")

FIELDS = {
    **dict.fromkeys(_SIZES, integer(1)),
    **dict.fromkeys(_OPTIONAL_SIZES, integer(1) | null()),
    **dict.fromkeys(_NUMBERS, number()),
    **dict.fromkeys(_FLAGS, flag()),
    **dict.fromkeys(_NAMES, text(100)),
    **dict.fromkeys(_TEXTS, text(2**24)),
    **dict.fromkeys(_TOKENS, integer() | null()),
    "token_types": integer(0),
    "eos_id": integer() | null() | sequence(integer()),
    "classifier_dropout": number() | null(),
    "rotary_scaling": sequence(number()) | null(),
    "scan_boundaries": sequence(integer()),
    "shared_roles": sequence(text()),
}
# More than any model has, and little enough to enumerate layers and to multiply sizes.
LIMITS = {
    **dict.fromkeys((*_SIZES, *_OPTIONAL_SIZES), integer(high=2**31 - 1) | null()),
    **dict.fromkeys(("num_layers", "num_decoder_layers"), integer(high=10_000) | null()),
    **dict.fromkeys(("num_feed_forwards", "num_heads"), integer(high=10_000)),
    "token_types": integer(high=2**31 - 1),
}
# As JSON has them; patterns of a file are matched with every path of a model.
RULES = {
    "adapters": sequence(sequence(anything(), 2)),
    "experts": sequence(sequence(anything(), 2)),
}
_RULE = {"pattern": text(), "settings": mapping(anything()) | number()}


def check(config, **fields: checks.Allowed) -> None:
    """Checks types and limits of all settings of a config.

    Args:
      config: a dataclass.
      fields: what differs from `FIELDS`.

    Raises:
      ValueError: names every setting of a wrong type.
    """
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    found = checks.problems(values, FIELDS | fields) or checks.problems(values, LIMITS)
    if found:
        raise ValueError(f"{checks.listed(found, '; ')}.")


def check_rules(values, where: str) -> None:
    """Checks the rules for adapters and experts of a file, whose patterns take bounded time.

    Raises:
      ValueError: names a rule that is none.
    """
    checks.check(values, RULES, where)
    for name in RULES:
        for entry in values.get(name) or ():
            checks.check(dict(zip(_RULE, entry, strict=True)), _RULE, f"{where}: {name}")
        if fault := patterns.fault([pattern for pattern, _ in values.get(name) or ()]):
            raise ValueError(f"{where}: {name}: a pattern {fault}.")
