"""Adapters on a model, by rules: added to its matrices, or parameters that it has."""

import dataclasses
import hashlib

import jax
import numpy as np
from flax import nnx

from mpojax import models, nn
from mpojax.compression import rules as rules_lib

STARTS = ("zero", "offset")


@dataclasses.dataclass(frozen=True)
class AdapterSettings(nn.AdapterSettings):
    """The adapters of one rule: the fields of `mpojax.nn.AdapterSettings`, and their start.

    Attributes:
      stddev: standard deviation of a fresh `down` of low rank; None: in_features^-0.5.
      start: of low rank. "zero": `up` is zero. "offset": both factors are drawn, by `offset_seed`,
        with in_features^-0.5 and out_features^-0.5, and their product is subtracted from the base
        matrix, which must be dense: the model computes the same, and both factors have gradients.
    """

    stddev: float | None = None
    start: str = "zero"

    def __post_init__(self):
        object.__setattr__(self, "offset_seed", self._seed())
        defaults = {f.name: f.default for f in dataclasses.fields(self)}
        for name in ("stddev", "start"):
            if self.kind != "low_rank" and getattr(self, name) != defaults[name]:
                raise ValueError(f"{name} has no meaning with kind={self.kind!r}; leave it out.")
        if self.stddev is not None and not self.stddev > 0:
            raise ValueError(f"stddev={self.stddev!r} must be above 0.")
        self.structure  # noqa: B018  checks the rest

    def _seed(self) -> int | None:
        if self.start not in STARTS:
            raise ValueError(f"start={self.start!r} must be one of {', '.join(STARTS)}.")
        if self.start == "zero":
            if self.offset_seed is not None:
                raise ValueError(
                    f"offset_seed={self.offset_seed!r} has no meaning with start='zero'; leave it "
                    "out, or give start='offset'."
                )
            return None
        return 0 if self.offset_seed is None else self.offset_seed

    @property
    def structure(self) -> nn.AdapterSettings:
        """Part that the model keeps."""
        names = [field.name for field in dataclasses.fields(nn.AdapterSettings)]
        return nn.AdapterSettings(**{name: getattr(self, name) for name in names})


def add_adapters(
    model: models.Model,
    rules: rules_lib.Rules,
    *,
    scale: float | None = None,
    rngs: nnx.Rngs,
) -> models.Model:
    """The model with adapters; it computes the same as before.

    Where layers share every parameter, they share the adapters, too.

    Args:
      model: any; matrices may be dense or in MPO form.
      rules: (regular expression, settings) or `Rule`, such as `[Rule("layers/.*/(query|value)",
        rank=8), Rule(".*/bias", kind="bias")]`: over whole matrix paths, or array paths for kinds
        in place; settings are the fields of `AdapterSettings`. Embeddings, heads and experts have
        no adapters.
      scale: what the output of every adapter without a scale of its own is multiplied with; None
        for that of the model.
      rngs: for random initial values.

    Raises:
      ValueError: malformed rules, unknown settings, a rule that matches nothing or a matrix that
        has an adapter, another scale than that of adapters which are there; an offset start beside
        a matrix in MPO form.

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

    Low rank is LoRA (Hu et al. 2022, arXiv:2106.09685); other kinds: see
    `mpojax.nn.AdapterSettings`.
    """
    present = models.adapter_settings(model.config)
    rules_lib.check_list(rules)
    parsed = [rules_lib.parse(rule, AdapterSettings) for rule in rules]
    added = _matched(model.config, rules)
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
    config = dataclasses.replace(
        model.config,
        adapters=(*model.config.adapters, *((p, s.structure) for p, s in parsed)),
        adapter_scale=model.config.adapter_scale if scale is None else float(scale),
    )
    arrays, sizes = models.to_arrays(model), models.matrix_sizes(config)
    for path, settings in added.items():
        fresh = nn.make_adapter(settings.structure, *sizes[path], rngs=rngs)
        for leaf, variable in nnx.to_flat_state(nnx.state(fresh, nnx.Param)):
            value = np.asarray(variable[...])
            arrays["/".join((path, "adapter", *map(str, leaf)))] = value
        if settings.kind == "low_rank":
            _start(config, arrays, path, settings)
    made = models.from_arrays(config, model.shapes, arrays)
    tuned = models.adapter_arrays(made)  # also checks the patterns in place
    breaks = models.scan_boundaries(made, tuned)
    if breaks == config.scan_boundaries:
        return made
    return models.from_arrays(
        dataclasses.replace(config, scan_boundaries=breaks), made.shapes, arrays
    )


def _start(config, arrays: dict, path: str, settings: AdapterSettings) -> None:
    """Sets the down map with the wanted standard deviation, or both factors of an offset start."""
    names = [f"{path}/adapter/{name}" for name in ("down", "up")]
    if settings.start == "zero":
        stddev = settings.stddev or len(arrays[names[0]]) ** -0.5
        # Sampled with the default standard deviation.
        arrays[names[0]] = np.float32(arrays[names[0]] * (stddev / nn.ADAPTER_STDDEV))
        return
    key = models.dense_name(path)
    if key not in arrays:
        raise ValueError(
            f"{path} is in MPO form: an offset start changes the dense base matrix; use "
            "start='zero', or merge the model."
        )
    arrays[names[0]], arrays[names[1]], update = offset_start(config, path, settings.structure)
    arrays[key] = np.float32(arrays[key] - update)


def offset_start(
    config, path: str, settings: nn.AdapterSettings
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(down, up, what is subtracted from the base matrix, float64) of an offset start.

    A function of the matrix path and `settings.offset_seed`.
    """
    number = int.from_bytes(hashlib.sha256(path.encode()).digest()[:4], "little")
    key = jax.random.fold_in(jax.random.key(settings.offset_seed), number)
    sizes = in_features, out_features = models.matrix_sizes(config)[path]
    shapes = (in_features, settings.rank), (settings.rank, out_features)
    down, up = (
        np.asarray(jax.random.normal(k, shape)) * np.float32(size**-0.5)
        for k, shape, size in zip(jax.random.split(key), shapes, sizes, strict=True)
    )
    scale = config.adapter_scale if settings.scale is None else settings.scale
    return down, up, scale * np.asarray(down, np.float64) @ np.asarray(up, np.float64)


def adapter_settings(config, rules: rules_lib.Rules) -> dict[str, nn.AdapterSettings]:
    """{matrix path: settings} of the adapters that the rules add to a model of these settings.

    Raises:
      ValueError: malformed rules, unknown settings, a rule that matches nothing.
    """
    return {path: settings.structure for path, settings in _matched(config, rules).items()}


def _matched(config, rules) -> dict[str, AdapterSettings]:
    added = [rule for rule in rules if not rules_lib.parse(rule, AdapterSettings)[1].in_place]
    if not added:
        return {}
    found = rules_lib.match(added, models.adaptable(config), AdapterSettings)
    return {path: settings for path, (_, settings) in found.items()}
