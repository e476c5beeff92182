"""The shapes that rules give a model, without its weights."""

from mpojax import models, mpo
from mpojax.compression import rules as rules_lib


def planned_shapes(
    config: models.EncoderConfig, rules: rules_lib.Rules, *, bond: int | None = None
) -> dict[str, mpo.MPOShape]:
    """{matrix path: shape} that `compress` would give with these rules.

    Args:
      config: settings of the model; all its matrices count as dense.
      rules: as for `compress`.
      bond: cap for the rules that say nothing about bonds.

    Raises:
      ValueError: rules that do not fit, or whose shapes depend on the weights (a tolerance, or
        another setting that looks at them).
    """
    targets = rules_lib.resolve(rules, models.matrix_sizes(config), {}, bond)
    for target in targets:
        for name in ("tolerance", "search"):
            if getattr(target.settings, name):
                raise ValueError(
                    f"{target.path}: {name}={getattr(target.settings, name)!r} chooses the chain "
                    "by the weights; it has no shape without them."
                )
    return {target.path: target.cut for target in targets}
