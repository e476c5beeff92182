"""Adapters on a model, by rules: added to its matrices, or parameters that it has."""

import dataclasses
import hashlib
from types import MappingProxyType

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mpojax import checks, models, nn
from mpojax.compression import layers
from mpojax.compression import rules as rules_lib
from mpojax.compression.matrices import matrices_of


@checks.settings()
class AdapterRule(nn.AdapterSettings):
    """The adapters of one rule: the fields of `mpojax.nn.AdapterSettings`, and their start.

    Attributes:
      stddev: standard deviation of a fresh `down` of low rank; None: in_features^-0.5.
      start: of low rank. "zero": `up` is zero. "offset": both factors are random, by `offset_seed`,
        with in_features^-0.5 and out_features^-0.5, and their product is subtracted from the base
        matrix, which must be dense: the model computes the same, and both factors have gradients.
    """

    stddev: float | None = checks.field(checks.number(above=0), None)
    start: str = checks.field(checks.one_of("zero", "offset"), "zero")

    def __post_init__(self):
        if self.start == "zero":
            checks.check_unread(self, {"offset_seed": "start='zero'"})
        elif self.offset_seed is None:
            object.__setattr__(self, "offset_seed", 0)
        if self.kind != "low_rank":
            checks.check_unread(self, dict.fromkeys(("stddev", "start"), f"kind={self.kind!r}"))
        self.structure  # noqa: B018  checks the rest

    @property
    def structure(self) -> nn.AdapterSettings:
        """Part that the model keeps."""
        names = [field.name for field in dataclasses.fields(nn.AdapterSettings)]
        return nn.AdapterSettings(**{name: getattr(self, name) for name in names})


def add_adapters(
    model: nnx.Module,
    rules: rules_lib.Rules,
    *,
    scale: float | None = None,
    rngs: nnx.Rngs,
) -> nnx.Module:
    """The model with adapters; it computes the same as before.

    Where layers share every parameter, they share the adapters, too.

    Args:
      model: any; matrices may be dense or in MPO form. Of any Flax NNX module, linear layers get an
        adapter around them; its parameters are `nn.AdapterParam`, which
        `nnx.Optimizer(model, ..., wrt=nn.AdapterParam)` trains alone.
      rules: (regular expression, settings) or `Rule`, such as `[Rule("layers/.*/(query|value)",
        rank=8), Rule(".*/bias", kind="bias")]`: over whole matrix paths, or array paths for kinds
        in place; settings are the fields of `AdapterRule`. Embeddings, heads and experts have
        no adapters.
      scale: what the output of every adapter without a scale of its own is multiplied with; None
        for that of the model.
      rngs: for random initial values.

    Raises:
      ValueError: malformed rules, unknown settings, a rule that matches nothing or a matrix that
        has an adapter, another scale than that of adapters which are there; an offset start next to
        a matrix in MPO form; a kind in place, such as "bias", on a module of your own.

    Example:

        >>> import mpojax as mj
        >>> from flax import nnx
        >>> from mpojax import models
        >>> sizes = {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "intermediate_size": 32}
        >>> model = models.build(models.EncoderConfig(vocab_size=99, **sizes), rngs=nnx.Rngs(0))
        >>> wider = mj.add_adapters(
        ...     model, [mj.Rule("layers/.*/(query|value)", rank=4)], rngs=nnx.Rngs(0)
        ... )
        >>> sorted(models.adapter_settings(wider.config))[:2]
        ['layers/0/attention/query', 'layers/0/attention/value']
        >>> own = nnx.Sequential(nnx.Linear(8, 8, rngs=nnx.Rngs(0)), nnx.relu)
        >>> type(mj.add_adapters(own, [mj.Rule(".*", rank=2)], rngs=nnx.Rngs(0)).layers[0]).__name__
        'AdaptedLayer'

    Low rank is LoRA (Hu et al. 2022, arXiv:2106.09685); other kinds: see
    `mpojax.nn.AdapterSettings`.
    """
    if not isinstance(model, models.Model):
        return _with_adapters(model, rules, 1.0 if scale is None else float(scale), rngs)
    present = models.adapter_settings(model.config)
    added = _matched(rules, model.config.adaptable())
    if twice := [path for path in added if path in present]:
        raise ValueError(
            f"{twice[0]} has an adapter already, {present[twice[0]]}: a rule may name "
            "matrices without one only."
        )
    if present and scale not in (None, model.config.adapter_scale):
        raise ValueError(
            f"scale={scale} differs from that of the adapters that are there, "
            f"{model.config.adapter_scale}: all have one."
        )
    parsed = [rules_lib.parse(rule, AdapterRule) for rule in rules]
    config = dataclasses.replace(
        model.config,
        adapters=(*model.config.adapters, *((p, rule.structure) for p, rule in parsed)),
        adapter_scale=model.config.adapter_scale if scale is None else float(scale),
    )
    arrays, sizes = models.to_arrays(model), config.matrix_sizes()
    for path, rule in added.items():
        key = models.dense_name(path)
        fresh, update = _fresh(path, sizes[path], rule, config.adapter_scale, rngs)
        for leaf, variable in nnx.to_flat_state(nnx.state(fresh, nnx.Param)):
            arrays["/".join((path, "adapter", *map(str, leaf)))] = np.asarray(variable[...])
        if update is not None:
            _check_dense(path, key in arrays)
            # (W - s D U) + s D U: the model computes the same at the start.
            arrays[key] = np.float32(arrays[key] - update)
    made = models.from_arrays(config, model.shapes, arrays)
    tuned = models.adapter_arrays(made)  # also checks the patterns in place
    breaks = models.scan_boundaries(made, tuned)
    if breaks == config.scan_boundaries:
        return made
    return models.from_arrays(
        dataclasses.replace(config, scan_boundaries=breaks), made.shapes, arrays
    )


def _with_adapters(module: nnx.Module, rules: rules_lib.Rules, scale: float, rngs) -> nnx.Module:
    """As `add_adapters`, for any module: layers with an adapter around them."""
    matrices = matrices_of(module)
    maps = {
        path: matrices.found[path]
        for path in matrices.sizes
        if not layers.is_table(matrices.found[path].layer)
    }
    for pattern, rule in (rules_lib.parse(rule, AdapterRule) for rule in rules):
        if rule.in_place:
            raise ValueError(
                f"rule {pattern!r}: kind={rule.kind!r} adds nothing to a module of your own; name "
                "these variables to the optimizer: nnx.Optimizer(model, ..., wrt=<filter>)."
            )
    new = {}
    for path, rule in _matched(rules, maps, refused=matrices.refused).items():
        layer = nnx.clone(maps[path].layer)
        if maps[path].adapted is not None:
            raise ValueError(f"{path} has an adapter already; merge(model) adds it to its matrix.")
        size, dtype = matrices.sizes[path], layers.compute_dtype(layer)
        fresh, update = _fresh(path, size, rule, scale, rngs, dtype)
        if update is not None:
            _check_dense(path, path not in matrices.shapes)
            layer = layers.with_matrix(layer, layers.matrix(layer) - update)
        settings = rule.structure
        if settings.kind in ("low_rank", "mpo") and settings.scale is None:
            settings = dataclasses.replace(settings, scale=scale)
        new[maps[path].location] = layers.AdaptedLayer(layer, fresh, settings)
    return layers.exchanged(module, new)


def _fresh(
    path: str,
    size: tuple[int, int],
    rule: AdapterRule,
    scale: float,
    rngs: nnx.Rngs,
    dtype: str = "float32",
) -> tuple[nnx.Module, np.ndarray | None]:
    """A fresh adapter, and what an offset start subtracts from the base matrix, else None."""
    adapter = nn.make_adapter(rule.structure, *size, scale, dtype=dtype, rngs=rngs)
    if rule.kind != "low_rank":
        return adapter, None
    if rule.start == "offset":
        down, up, update = offset_start(path, size, rule.structure, scale)
        adapter.down[...], adapter.up[...] = jnp.asarray(down), jnp.asarray(up)
        return adapter, update
    # Sampled with the default standard deviation.
    stddev = rule.stddev or size[0] ** -0.5
    adapter.down[...] = np.float32(np.asarray(adapter.down[...]) * (stddev / nn.ADAPTER_STDDEV))
    return adapter, None


def _check_dense(path: str, is_dense: bool) -> None:
    if not is_dense:
        raise ValueError(
            f"{path} is in MPO form: an offset start changes the dense base matrix; use "
            "start='zero', or merge the model."
        )


def offset_start(
    path: str, size: tuple[int, int], settings: nn.AdapterSettings, scale: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(down, up, what is subtracted from the base matrix, float64) of an offset start.

    A function of the path, the size and `settings.offset_seed`; `scale` is that of the model.
    """
    # Not hash(), whose values differ from process to process.
    number = int.from_bytes(hashlib.sha256(path.encode()).digest()[:4], "little")
    key = jax.random.fold_in(jax.random.key(settings.offset_seed), number)
    shapes = (size[0], settings.rank), (settings.rank, size[1])
    down, up = (
        np.asarray(jax.random.normal(k, shape)) * np.float32(features**-0.5)
        for k, shape, features in zip(jax.random.split(key), shapes, size, strict=True)
    )
    scale = scale if settings.scale is None else settings.scale
    return down, up, scale * np.asarray(down, np.float64) @ np.asarray(up, np.float64)


def adapter_settings(config, rules: rules_lib.Rules) -> dict[str, nn.AdapterSettings]:
    """{matrix path: settings} of the adapters that the rules add to a model of these settings.

    Raises:
      ValueError: malformed rules, unknown settings, a rule that matches nothing.
    """
    matched = _matched(rules, config.adaptable())
    return {path: rule.structure for path, rule in matched.items()}


def _matched(rules, paths, refused=MappingProxyType({})) -> dict[str, AdapterRule]:
    """The matrices that get an adapter; kinds in place are no part of it."""
    rules_lib.check_list(rules)
    added = [rule for rule in rules if not rules_lib.parse(rule, AdapterRule)[1].in_place]
    found = rules_lib.match(added, paths, AdapterRule, refused) if added else {}
    return {path: rule for path, (_, rule) in found.items()}
