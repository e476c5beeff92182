"""Low-rank updates out of fine-tuned models, of other ranks, added up, and taken away again."""

import dataclasses
import re
from collections.abc import Mapping, Sequence

import numpy as np

from mpojax import checks, layers, models
from mpojax.interop.adapter_files import fingerprint
from mpojax.layers import AdapterSettings


def extract(
    base: models.Model,
    tuned: models.Model,
    *,
    rank: int | None = None,
    energy: float | None = None,
) -> models.Model:
    """The base with adapters that stand for what fine-tuning did to it.

    Each matrix that differs gets a low-rank update, the best one of its rank (singular value
    decomposition in float64); other biases, norm scales and auxiliary cores are taken over as they
    are. Heads come from the tuned model.

    Args:
      base, tuned: of equal settings, without adapters, matrices dense.
      rank: of every update, at most.
      energy: smallest ranks that keep this fraction of the squared norm of each change instead.

    Raises:
      ValueError: models that do not fit, other parameters that differ (such as token
        embeddings), or not just one of rank and energy.
    """
    _check_size(rank, energy)
    if base.config.adapters or tuned.config.adapters or base.shapes or tuned.shapes:
        raise ValueError("extract takes dense models without adapters: merge them first.")
    before, after = models.to_arrays(base), models.to_arrays(tuned)
    shapes = [{name: array.shape for name, array in m.items()} for m in (before, after)]
    if shapes[0] != shapes[1]:
        wrong = sorted(set(shapes[0].items()) ^ set(shapes[1].items()))[0][0]
        raise ValueError(f"base and tuned are models of different sizes; see {wrong}.")
    matrices = {models.dense_name(path): path for path in models.adaptable(base.config)}
    adapters, arrays, unknown = [], dict(before), []
    for name, array in after.items():
        if np.array_equal(array, before[name]):
            continue
        kind = _kind_in_place(name)
        if name in matrices:
            change = np.asarray(array, np.float64) - before[name]
            down, up = _truncated(*_svd(change), rank, energy)
            path = matrices[name]
            adapters.append((re.escape(path), AdapterSettings(rank=down.shape[1], scale=1.0)))
            arrays |= {f"{path}/adapter/down": down, f"{path}/adapter/up": up}
        elif name.startswith("head/"):
            arrays[name] = array
        elif kind is None:
            unknown.append(name)
        else:
            adapters.append((re.escape(name), AdapterSettings(kind=kind)))
            arrays[name] = array
    if unknown:
        raise ValueError(
            f"{checks.listed(unknown)} differ, too, which no adapter can hold: fine-tune with "
            "frozen tables, or save the whole model."
        )
    if not adapters:
        raise ValueError("base and tuned are equal: there is nothing to extract.")
    return _built(base, adapters, arrays)


def resize(
    model: models.Model, *, rank: int | None = None, energy: float | None = None
) -> models.Model:
    """The model with low-rank adapters of smaller ranks, each the nearest to the one it had.

    Never through the dense product: QR of both factors, a singular value decomposition of the small
    matrix between them. Other adapters stay.

    Args:
      model: with low-rank adapters.
      rank: of each, at most; or
      energy: smallest ranks that keep this fraction of each update's squared norm.

    Raises:
      ValueError: no low-rank adapter, one with an offset start, or not just one of the two sizes.
    """
    _check_size(rank, energy)
    arrays, adapters, found = models.to_arrays(model), [], False
    for path, settings in models.adapter_settings(model.config).items():
        if settings.kind == "low_rank":
            found = True
            _check_no_offset(path, settings)
            names = [f"{path}/adapter/{leaf}" for leaf in ("down", "up")]
            parts = _product_svd(*(np.asarray(arrays[name], np.float64) for name in names))
            down, up = _truncated(*parts, rank, energy)
            arrays |= dict(zip(names, (down, up), strict=True))
            settings = dataclasses.replace(settings, rank=down.shape[1])
        adapters.append((re.escape(path), settings))
    if not found:
        raise ValueError("the model has no low-rank adapters to resize.")
    adapters += [(p, s) for p, s in model.config.adapters if s.in_place]
    return _built(model, adapters, arrays)


def add(
    base: models.Model,
    adapted: Sequence[models.Model],
    weights: Sequence[float],
    *,
    rank: int | None = None,
    energy: float | None = None,
) -> models.Model:
    """The base with the weighted sum of several models' updates.

    Low ranks are put side by side and rounded to a rank, never through the dense product;
    parameters in place become base + sum of weight * (theirs - base). Heads come from the first.

    Args:
      base: without adapters.
      adapted: models with low-rank adapters and kinds in place, tuned on it.
      weights: one for each.
      rank, energy: of the sums, see `resize`; neither: ranks add up.

    Raises:
      ValueError: models of another base, other kinds of adapters, or as many weights as models.
    """
    if len(adapted) != len(weights) or not adapted:
        raise ValueError(f"{len(adapted)} models and {len(weights)} weights: give one for each.")
    before, arrays, factors, tuned = models.to_arrays(base), {}, {}, {}
    arrays |= before
    for number, (model, weight) in enumerate(zip(adapted, weights, strict=True)):
        _check_base(base, model, number)
        held = models.to_arrays(model)
        for path, settings in models.adapter_settings(model.config).items():
            if settings.kind != "low_rank":
                raise ValueError(
                    f"{path} has an adapter of kind {settings.kind!r}; add takes low "
                    "ranks and kinds in place."
                )
            _check_no_offset(path, settings)
            scale = model.config.adapter_scale if settings.scale is None else settings.scale
            down, up = (np.asarray(held[f"{path}/adapter/{n}"], np.float64) for n in ("down", "up"))
            factors.setdefault(path, []).append((weight * scale * down, up))
        for name, kind in models.adapter_arrays(model).items():
            if "/adapter/" not in name:
                tuned[name] = kind
                arrays[name] = arrays[name] + np.float32(weight * (held[name] - before[name]))
        if number == 0:
            arrays |= {n: a for n, a in held.items() if n.startswith("head/")}
    adapters = [(re.escape(name), AdapterSettings(kind=kind)) for name, kind in tuned.items()]
    for path, parts in factors.items():
        down, up = np.hstack([p[0] for p in parts]), np.vstack([p[1] for p in parts])
        if rank is not None or energy is not None:
            _check_size(rank, energy)
            down, up = _truncated(*_product_svd(down, up), rank, energy)
        adapters.append((re.escape(path), AdapterSettings(rank=down.shape[1], scale=1.0)))
        arrays |= {f"{path}/adapter/{n}": np.float32(a) for n, a in (("down", down), ("up", up))}
    return _built(base, adapters, arrays)


def unmerge(merged: models.Model, adapted: models.Model) -> models.Model:
    """The adapted model again: its base from the merged one, its adapters from itself.

    The base's matrices come back to the last bits of float32: each sum rounds once.

    Args:
      merged: `interop.merge(adapted)`, maybe loaded from a folder.
      adapted: has the adapters.

    Raises:
      ValueError: models that do not fit, or kinds of adapters that are no sums.
    """
    arrays, held = models.to_arrays(merged), models.to_arrays(adapted)
    if adapted.shapes:
        raise ValueError("matrices in MPO form cannot be had back from a merged model.")
    for path, settings in models.adapter_settings(adapted.config).items():
        if settings.kind not in ("low_rank", "mpo"):
            raise ValueError(f"{path}: an adapter of kind {settings.kind!r} is no sum.")
        names = [name for name in held if name.startswith(f"{path}/adapter/")]
        parts = {n.rpartition("/")[2]: np.asarray(held[n], np.float64) for n in names}
        key = models.dense_name(path)
        zero = np.zeros(np.shape(arrays[key]))
        update, _ = layers.fold_adapter(settings, parts, zero, None, adapted.config.adapter_scale)
        arrays[key] = np.float32(arrays[key] - update)
        arrays |= {name: held[name] for name in names}
    return models.from_arrays(adapted.config, {}, arrays)


def _built(base: models.Model, adapters, arrays: Mapping) -> models.Model:
    config = dataclasses.replace(base.config, adapters=tuple(adapters))
    made = models.from_arrays(config, base.shapes, arrays)
    breaks = models.stack_breaks(made, models.adapter_arrays(made))
    config = dataclasses.replace(config, stack_breaks=breaks)
    return models.from_arrays(config, base.shapes, arrays)


def _svd(matrix: np.ndarray):
    return np.linalg.svd(matrix, full_matrices=False)


def _product_svd(down: np.ndarray, up: np.ndarray):
    """Singular value decomposition of down @ up through the small matrix between its bases."""
    q, r = np.linalg.qr(down)
    p, s = np.linalg.qr(up.T)
    u, values, v = np.linalg.svd(r @ s.T)
    return q @ u, values, v @ p.T


def _truncated(u, values, v, rank: int | None, energy: float | None):
    """(down, up) float32 with the singular values shared between them."""
    kept = len(values) if rank is None else min(rank, len(values))
    if energy is not None:
        shares = np.cumsum(values**2) / max(np.sum(values**2), np.finfo(np.float64).tiny)
        kept = int(np.searchsorted(shares, energy - 1e-12)) + 1
    kept = max(1, min(kept, len(values)))
    root = np.sqrt(values[:kept])
    return np.float32(u[:, :kept] * root), np.float32(root[:, None] * v[:kept])


def _check_size(rank, energy) -> None:
    if (rank is None) == (energy is None):
        raise ValueError("give rank or energy, one of them.")
    if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int) or rank < 1):
        raise ValueError(f"rank={rank!r} must be an integer of at least 1.")
    if energy is not None and not 0 < energy <= 1:
        raise ValueError(f"energy={energy!r} must lie in (0, 1].")


def _check_no_offset(path: str, settings: AdapterSettings) -> None:
    if settings.offset_seed is not None:
        raise ValueError(f"{path} has an offset start: its base is not the original; merge it.")


def _check_base(base, model, number: int) -> None:
    """Raises ValueError unless `model` was tuned on `base`."""
    if base.config.adapters:
        raise ValueError("the base has adapters; give the model that the others were tuned on.")
    plain = {name: getattr(base.config, name) for name in ("stack_breaks", "adapter_scale")}
    config = dataclasses.replace(model.config, adapters=(), **plain)
    if config != base.config:
        names = [f.name for f in dataclasses.fields(config)]
        other = [n for n in names if getattr(config, n) != getattr(base.config, n, None)]
        raise ValueError(f"model {number} has another {', '.join(other)} than the base.")
    skipped = set(models.adapter_arrays(model))
    pairs = [models.to_arrays(m) for m in (base, model)]
    same = all(
        np.array_equal(array, pairs[1].get(name))
        for name, array in pairs[0].items()
        if name not in skipped and not name.startswith("head/")
    )
    if not same:
        raise ValueError(
            f"model {number} was tuned on another base (its fingerprint is {fingerprint(model)})."
        )


def _kind_in_place(name: str) -> str | None:
    leaf = name.rpartition("/")[2]
    return {"bias": "bias", "scale": "norm_scale"}.get(leaf)
