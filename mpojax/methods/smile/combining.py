"""`combine`: a base with routed low-rank experts, the SVDs of what fine-tuning changed."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from mpojax import checks, models, nn
from mpojax.methods.smile.family import Family

REST = ("base", "mean")
_SIZE = checks.integer(1)
_FIELDS = {
    **dict.fromkeys(("rank", "gate_rank", "top_k"), _SIZE),
    "rest": checks.one_of(*REST),
}


def combine(
    base: models.Model,
    tuned: Mapping[str, models.Model] | Sequence[models.Model],
    *,
    rank: int = 32,
    gate_rank: int = 4,
    top_k: int = 1,
    rest: str = "base",
    progress: Callable[[int, int, str], None] | None = None,
) -> models.Model:
    """One model of a base and K fine-tunings of it, by routed low-rank experts.

    With W_e - W = U_e S_e V_e^T (inputs on the left) a matrix becomes

        y = x W + b + sum_e p_e(x) (x U_e[:, :rank] S_e V_e^T[:rank] + b_e - b)
        p = top_k of softmax_e ||x U_e[:, :gate_rank]||, divided by its sum

    Args:
      base: dense; the model that all fine-tunings started from, with a head or without.
      tuned: dense, of the architecture of the base; heads may differ and are left behind, see
        `with_head_of`. A mapping gives them names.
      rank: of each expert; K rank (in + out) parameters are added to a matrix.
      gate_rank: directions of each expert that its router looks at.
      top_k: experts of each token, at most K.
      rest: what has no experts (embeddings, norms): that of the base, or the mean of `tuned`.
      progress: called as progress(done, total, path).

    Returns:
      The base with an adapter of kind "routed" parallel to every matrix that may have one: saved
      and loaded as any model with adapters is.

    Raises:
      ValueError: no model, top_k above K, a rank above a matrix' size, models that do not belong
        together (see `smile.Family`).

    Examples:
      >>> import jax
      >>> import mpojax as mj
      >>> from flax import nnx
      >>> from mpojax import models
      >>> sizes = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "intermediate_size": 32}
      >>> base = models.build(models.EncoderConfig(vocab_size=99, **sizes), rngs=nnx.Rngs(0))
      >>> tuned = [jax.tree.map(lambda w, s=s: w * (1 + s), base) for s in (0.01, -0.02)]
      >>> both = mj.combine(base, tuned, rank=4, gate_rank=2)
      >>> models.adapter_settings(both.config)["layers/0/attention/query"].experts
      2

    Tang et al., "SMILE: zero-shot sparse mixture of low-rank experts construction from pre-trained
    foundation models" (2024, arXiv:2408.10174).
    """
    checks.check({"rank": rank, "gate_rank": gate_rank, "top_k": top_k, "rest": rest}, _FIELDS)
    family = Family.of(base, tuned)
    base = family.model
    count = len(family.names)
    checks.check_value("top_k", top_k, checks.integer(1, count))
    sizes = base.config.matrix_sizes()
    paths = base.config.adaptable()
    for path in paths:
        limit = checks.integer(1, min(sizes[path]))
        for name, value in (("rank", rank), ("gate_rank", gate_rank)):
            checks.check_value(f"{name} at {path}", value, limit)
    arrays = dict(models.to_arrays(base))
    if rest == "mean":
        routed = {leaf for path in paths for leaf in (models.dense_name(path), f"{path}/bias")}
        changes = {
            p: np.mean(family.differences(p), axis=0) for p in family.base if p not in routed
        }
        arrays |= {p: np.float32(family.base[p] + change) for p, change in changes.items()}
    for done, path in enumerate(paths):
        experts = _experts(family, path, rank, gate_rank)
        arrays |= {f"{path}/adapter/{leaf}": np.float32(value) for leaf, value in experts.items()}
        if progress is not None:
            progress(done + 1, len(paths), path)
    settings = nn.AdapterSettings(
        kind="routed", rank=rank, experts=count, top_k=top_k, gate_rank=gate_rank, scale=1.0
    )
    # A pooler that comes with a head, see `with_head_of`, has no experts.
    pattern = ".*" if "pooler" in paths else "(?!pooler$).*"
    config = dataclasses.replace(base.config, adapters=((pattern, settings),))
    return models.from_arrays(config, {}, arrays)


def _experts(family: Family, path: str, rank: int, gate_rank: int) -> dict[str, np.ndarray]:
    """Parameters of `nn.RoutedAdapter` for one matrix."""
    gates, downs, ups = [], [], []
    for difference in family.differences(models.dense_name(path)):
        u, s, vt = np.linalg.svd(difference, full_matrices=False)
        # x (W_e - W) ~ (x U_r S_r^(1/2)) (S_r^(1/2) V_r^T)
        root = np.sqrt(s[:rank])
        gates.append(u[:, :gate_rank])
        downs.append(u[:, :rank] * root)
        ups.append(root[:, None] * vt[:rank])
    bias = f"{path}/bias"
    has_bias = bias in family.base
    biases = family.differences(bias) if has_bias else [np.zeros(vt.shape[1])] * len(gates)
    # (in, K gate_rank), (in, K rank), (K rank, out)
    made = {"gate": np.hstack(gates), "down": np.hstack(downs), "up": np.vstack(ups)}
    return made | {"bias": np.stack(biases)}


def with_head_of(model: models.Model, tuned: models.Model) -> models.Model:
    """`model` with the head of a fine-tuned one, and with its pooler where it has none of its own.

    Args:
      model: what `combine` or `merged` gave.
      tuned: one of the models that it was made of.

    Raises:
      ValueError: `tuned` has no head.
    """
    if tuned.config.num_labels is None:
        raise ValueError(f"a {type(tuned).__name__} has no head to take.")
    known = {field.name for field in dataclasses.fields(model.config)}
    names = known & {"num_labels", "head", "pooling", "masked_lm"}
    changes = {name: getattr(tuned.config, name) for name in names}
    config = dataclasses.replace(model.config, **changes)
    config = config.with_label_names(tuned.config.label_names)
    own, theirs = models.to_arrays(model), models.to_arrays(tuned)
    arrays = {
        path: theirs[path] if models.is_of_head(path) or path not in own else own[path]
        for path in models.array_shapes(config, model.shapes)
    }
    return models.from_arrays(config, model.shapes, arrays)
