"""Models of one base merged into one of its size: the mean, task arithmetic, TIES.

With task vectors t_e = theta_e - theta over all parameters but those of heads:

    mean             theta + mean_e t_e             (Wortsman et al. 2022, arXiv:2203.05482)
    task_arithmetic  theta + s sum_e t_e            (Ilharco et al. 2023, arXiv:2212.04089)
    ties             theta + s mean of what agrees  (Yadav et al. 2023, arXiv:2306.01708)

TIES keeps the share `density` of largest entries of each t_e, elects for every parameter the sign
of their sum, and averages the entries of that sign.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from mpojax import checks, models
from mpojax.methods.smile.family import Family

# The scale that each paper recommends where nothing can be tuned.
MERGES = {"mean": 1.0, "task_arithmetic": 0.4, "ties": 1.0}


def merged(
    base: models.Model,
    tuned: Mapping[str, models.Model] | Sequence[models.Model],
    method: str = "mean",
    *,
    scale: float | None = None,
    density: float = 0.2,
) -> models.Model:
    """The base, moved by what fine-tuning changed.

    Args:
      base, tuned: as for `combine`.
      method: a key of `MERGES`.
      scale: s above; None for what the method's paper recommends.
      density: of TIES: share of the entries of a task vector that count.

    Returns:
      A dense model of the base's size and head.

    Raises:
      ValueError: as `combine`; an unknown method, a scale for the mean, a density outside (0, 1].

    Examples:
      >>> import jax
      >>> import numpy as np
      >>> from flax import nnx
      >>> from mpojax import models
      >>> from mpojax.methods import smile
      >>> sizes = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "intermediate_size": 32}
      >>> base = models.build(models.EncoderConfig(vocab_size=99, **sizes), rngs=nnx.Rngs(0))
      >>> tuned = [jax.tree.map(lambda w, s=s: w * (1 + s), base) for s in (0.01, 0.03)]
      >>> mean = smile.merged(base, tuned)
      >>> w, w_mean = (np.asarray(m.embeddings.word.table[...]) for m in (base, mean))
      >>> bool(np.allclose(w_mean, 1.02 * w))
      True
    """
    checks.check_value("method", method, checks.one_of(*MERGES))
    checks.check_value("density", density, checks.number(above=0, high=1))
    checks.check_clashes({"the mean has no scale": method == "mean" and scale is not None})
    scale = MERGES[method] if scale is None else scale
    family = Family.of(base, tuned)
    base = family.model
    limits = _thresholds(family, density) if method == "ties" else None
    arrays = dict(models.to_arrays(base))
    for path in family.base:
        changes = np.stack(family.differences(path))
        if method == "ties":
            change = _agreeing_mean(changes, limits)
        else:
            change = changes.mean(axis=0) if method == "mean" else changes.sum(axis=0)
        arrays[path] = np.float32(family.base[path] + scale * change)
    return models.from_arrays(base.config, {}, arrays)


def _thresholds(family: Family, density: float) -> np.ndarray:
    """The smallest size of an entry of each task vector that counts, over all parameters."""
    found = []
    for each in family.tuned:
        parts = [np.abs(np.float32(each[p]) - family.base[p]).ravel() for p in family.base]
        sizes = np.concatenate(parts)
        kept = max(int(density * sizes.size), 1)
        found.append(np.partition(sizes, sizes.size - kept)[sizes.size - kept])
    return np.array(found)


def _agreeing_mean(changes: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """TIES of one array: (K, ...) to (...)."""
    limits = limits.reshape(-1, *[1] * (changes.ndim - 1))
    # Rounded as the limits were: the entry at a limit counts.
    trimmed = np.where(np.abs(np.float32(changes)) >= limits, changes, 0.0)
    # Entries of the elected sign, that of the sum over models; then their mean.
    agrees = (np.sign(trimmed) == np.sign(trimmed.sum(axis=0))) & (trimmed != 0)
    return np.sum(trimmed * agrees, axis=0) / np.maximum(agrees.sum(axis=0), 1)
