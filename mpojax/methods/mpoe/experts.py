"""The paper's models as data: names of variants, their rules, shapes and counts."""

import re
from typing import Any

from mpojax import compression, models, mpo
from mpojax.methods import mpop

# All feed-forward blocks, of encoder and decoder.
BLOCKS = r"(.*/)?layers/\d+/feed_forward"

# Fields of `ExpertRule`. Routers: the authors' MPOE runs send a token to the best expert,
# with a straight-through gate; their layer of two experts for a token has a router without bias.
KINDS: dict[str, dict[str, Any]] = {
    "mpoe": {"form": "mpoe", "router": "switch"},
    "unshared": {"form": "unshared", "router": "switch"},
    "switch": {"form": "switch", "router": "switch"},
    "moe": {"form": "switch", "router": "top2", "router_bias": False},
}
OPTIONS: dict[str, dict[str, Any]] = {
    **{f"m{cores}": {"cores": cores} for cores in (3, 5, 7, 9)},
    "separable": {"factorization": "separable"},
    "sharedbias": {"share_bias": True},
    "nomask": {},
}
# Those of the paper's tables. n = 4 (table 2) and n = 16 ("MPOE++") follow from its counts.
VARIANTS = (
    *("dense", "switch8", "moe8", "mpoe8", "mpoe16", "mpoe4", "unshared8", "mpoe8_nomask"),
    *("mpoe8_m3", "mpoe8_m7", "mpoe8_m9"),
)
_NAME = re.compile(rf"({'|'.join(KINDS)})([1-9]\d*)((?:_[a-z0-9]+)*)")


def fields(variant: str) -> dict[str, Any] | None:
    """Fields of `compression.ExpertRule` of a variant; None for "dense".

    Raises:
      ValueError: a name that is no variant; says how they are made.
    """
    if variant == "dense":
        return None
    matched = _NAME.fullmatch(variant)
    options = matched[3].split("_")[1:] if matched else []
    if matched is None or any(option not in OPTIONS for option in options):
        raise ValueError(
            f"unknown variant {variant!r} of MPOE: it must be dense, or one of {', '.join(KINDS)} "
            "with the number of experts, then any of "
            f"{', '.join(f'_{option}' for option in OPTIONS)}; such as mpoe8 or mpoe8_m7."
        )
    chosen = KINDS[matched[1]] | {"number": int(matched[2])}
    for option in options:
        chosen |= OPTIONS[option]
    return chosen


def rules(variant: str, **changes) -> list[tuple[str, dict[str, Any]]]:
    """Rules for `compression.add_experts`; none for "dense".

    Args:
      variant: see `mpojax.methods.mpoe`.
      **changes: other fields of `ExpertRule`, and `blocks`, a pattern for the paths of the
        blocks that become experts.
    """
    blocks = changes.pop("blocks", BLOCKS)
    chosen = fields(variant)
    return [] if chosen is None else [(blocks, chosen | changes)]


def mask_rate(variant: str) -> float | None:
    """Probability p_b with which a step leaves the central cores out; None: nothing to mask.

    1 - 1 / n. The paper gives no value. With tokens spread evenly, the cores of one expert see 1 /
    n of them, a shared core sees all: with this rate both get as many token gradients. Central
    cores that are not shared ("unshared") see 1 / n of the tokens anyway: they have no mask.
    """
    chosen = fields(variant)
    if chosen is None or chosen["form"] != "mpoe" or "nomask" in variant.split("_"):
        return None
    return 1.0 - 1.0 / chosen["number"]


def planned(
    architecture: str, variant: str, **changes
) -> tuple[models.DecoderConfig | models.EncoderDecoderConfig, dict[str, mpo.MPOShape]]:
    """Settings and shapes of a variant of a published model, as `models.build` takes them.

    Args:
      architecture: a name in `models.PRESETS`.
      variant, **changes: as for `rules`.

    Raises:
      ValueError: an unknown name, or fields that do not fit.
    """
    if architecture not in models.PRESETS:
        raise ValueError(
            f"unknown architecture {architecture!r}; there are {', '.join(models.PRESETS)}."
        )
    config = models.PRESETS[architecture]
    chosen = rules(variant, **changes)
    return compression.planned_experts(config, {}, chosen) if chosen else (config, {})


def counts(architecture: str, variant: str, **changes) -> dict[str, int]:
    """`mpop.parameter_counts` of a variant, and "router"; from shapes alone, nothing is allocated.

    Everything is trained, thus "trainable" is "total".

    Args, Raises: as for `planned`.
    """
    model = mpop.abstract(*planned(architecture, variant, **changes))
    router = sum(variable.size for path, variable, _ in models.variables(model) if "router" in path)
    return mpop.parameter_counts(model) | {"router": router}
