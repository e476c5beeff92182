"""Feed-forward blocks of a language model become mixtures of experts, by rules ("upcycling").

"Parameter-Efficient Mixture-of-Experts Architecture for Pre-trained Language Models" (COLING 2022),
section 4.1; Komatsuzaki et al., "Sparse Upcycling" (ICLR 2023), for dense experts.
"""

import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np
from flax import nnx

from mpojax import checks, models, mpo, nn
from mpojax.compression import rules as rules_lib

FORMS = ("mpoe", "unshared", "switch")
_MAPS = ("up", "gate", "down")
_FACTORS = checks.sequence(checks.integer(1))
# Fields that are handed on to the layers.
_OF_LAYERS = (
    *("number", "router", "k", "capacity_factor", "dispatch", "structure", "remat"),
    *("router_bias", "share_bias"),
)


@checks.settings()
class ExpertRule:
    """Settings of the experts that the feed-forward blocks of one rule become.

    Attributes:
      number: of experts.
      form: "mpoe" (chains with one central core for all experts of a matrix), "unshared" (chains
        with a central core for each), "switch" (a dense matrix for each).
      router, k, capacity_factor, dispatch, structure, remat, router_bias, share_bias: as in
        `mpojax.nn.ExpertSettings`.
      cores: number of cores of a chain.
      factorization: "published" (the authors' factor lists, else automatic ones) or "separable"
        (each side's auxiliary cores act on one side of the matrix alone, see
        `mpo.separable_shape`: cheaper with few tokens for each expert, another family of chains).
      factors: {map: (in_factors, out_factors)} for "up", "gate", "down" instead.
      bond: cap of every bond; None: full bonds, where the experts start as exact copies.
      gauge: of the chains at the start, one of `mpojax.mpo.GAUGES`. "identity" needs no
        factorisation and is exact to the last bit; the authors' is "symmetric".
    """

    number: int
    form: str = checks.field(checks.one_of(*FORMS), "mpoe")
    router: str = "switch"
    k: int = 2
    capacity_factor: float | None = None
    dispatch: str = "auto"
    structure: str = "auto"
    remat: bool = True
    router_bias: bool = True
    share_bias: bool = False
    cores: int = checks.field(checks.integer(2), 5)
    factorization: str = checks.field(checks.one_of("published", "separable"), "published")
    factors: Mapping[str, tuple] | None = checks.field(
        checks.mapping(checks.pair(_FACTORS, _FACTORS), _MAPS), None
    )
    bond: int | None = checks.field(checks.integer(1), None)
    gauge: str = checks.field(checks.one_of(*mpo.GAUGES), "identity")

    def __post_init__(self):
        checks.check_clashes(
            {
                f"gauge='identity' is exact only at full bonds; leave out bond={self.bond}, or "
                "choose gauge='central'": self.bond is not None and self.gauge == "identity",
                f"cores={self.cores}: separable chains have five": (
                    self.factorization == "separable" and self.cores != 5
                ),
            }
        )
        if self.form == "switch":
            unread = ("structure", "cores", "factorization", "factors", "bond", "gauge")
            why = "form='switch', whose experts are dense matrices"
            checks.check_unread(self, dict.fromkeys(unread, why))
        if self.router in ("switch", "switch_scale"):
            why = f"router={self.router!r}, which sends a token to one expert"
            checks.check_unread(self, {"k": why})
        if self.factors is not None:
            why = "factors, which are the lists"
            checks.check_unread(self, dict.fromkeys(("factorization", "cores"), why))
        self.settings  # noqa: B018  checks the rest

    @property
    def settings(self) -> nn.ExpertSettings:
        """Settings of the layers."""
        chosen = {name: getattr(self, name) for name in _OF_LAYERS}
        return nn.ExpertSettings(share_central=self.form == "mpoe", **chosen)

    def shape(self, name: str, in_features: int, out_features: int) -> mpo.MPOShape:
        """The chain of the map `name` ("up", "gate" or "down") of this size."""
        if self.factors is not None:
            if name not in self.factors:
                raise ValueError(f"factors has no lists for {name!r}; has {sorted(self.factors)}.")
            shape = mpo.MPOShape(
                *map(tuple, self.factors[name]), in_features=in_features, out_features=out_features
            )
        elif self.factorization == "separable":
            shape = mpo.separable_shape(in_features, out_features)
        else:
            size = (in_features, out_features, self.cores)
            shape = mpo.MPOShape.published(*size) or mpo.MPOShape.balanced(*size)
        return shape if self.bond is None else shape.with_bonds(self.bond)


def planned_experts(
    config: models.DecoderConfig | models.EncoderDecoderConfig,
    shapes: Mapping[str, mpo.MPOShape],
    rules: rules_lib.Rules,
) -> tuple[models.DecoderConfig | models.EncoderDecoderConfig, dict[str, mpo.MPOShape]]:
    """Settings and shapes that `add_experts` would give; no weights are needed.

    Args:
      config, shapes: of the model without experts.
      rules: (regular expression over whole paths of feed-forward blocks such as
        layers/3/feed_forward, fields of `ExpertRule`), or the same as `Rule`.

    Raises:
      ValueError: malformed rules, unknown fields, a rule that matches nothing or a block that has
        experts, or an adapter on a matrix that becomes experts'.
    """
    matched = _matched(config, rules)
    new_shapes = dict(shapes)
    for path, rule in matched.items():
        for name, size in _maps(config, path):
            if rule.form == "switch":
                new_shapes.pop(f"{path}/{name}", None)
            elif f"{path}/{name}" not in shapes:
                new_shapes[f"{path}/{name}"] = _shape(path, name, rule, size)
            if rule.form != "switch" and new_shapes[f"{path}/{name}"].num_cores < 2:
                raise ValueError(
                    f"{path}/{name} is a chain of one core, the central one: experts would own "
                    "nothing; merge(model) makes it dense."
                )
    experts = tuple((pattern, ExpertRule(**fields).settings) for pattern, fields in rules)
    present = models.adapter_settings(config)
    for path in matched:
        if adapted := [p for p in present if p.startswith(f"{path}/")]:
            raise ValueError(
                f"{adapted[0]} has an adapter, which experts cannot keep; merge(model) adds it to "
                "its matrix."
            )
    return dataclasses.replace(config, experts=(*config.experts, *experts)), new_shapes


def add_experts(
    model: models.LanguageModel | models.EncoderDecoder,
    rules: rules_lib.Rules,
    *,
    rngs: nnx.Rngs,
) -> models.LanguageModel | models.EncoderDecoder:
    """The model with mixtures of experts, all copies of what was there; routers are random.

    It computes the same as before, whatever the number of experts and the routers, with full bonds,
    no dropped tokens, and the routers "switch" and "top2" (also "noisy_topk": weights sum to 1): up
    to rounding, since tokens that go through chains are summed in another order than through the
    matrices. "switch_scale" multiplies every block's output by the probability of the chosen
    expert: its start is another function.

    Args:
      model: decoder or encoder-decoder; blocks may be dense or in MPO form already, whose chains
        are then kept.
      rules: as for `planned_experts`.
      rngs: for the routers.

    Raises:
      ValueError: see `planned_experts`; or a model that has no experts to be.

    Example:

        >>> import mpojax as mj
        >>> from flax import nnx
        >>> from mpojax import models
        >>> sizes = {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "intermediate_size": 32}
        >>> model = models.build(models.DecoderConfig(vocab_size=99, **sizes), rngs=nnx.Rngs(0))
        >>> wider = mj.add_experts(model, [mj.Rule(".*/feed_forward", number=4)], rngs=nnx.Rngs(0))
        >>> wider.config.experts_of("layers/1/feed_forward").number
        4

    Gao et al., "Parameter-Efficient Mixture-of-Experts Architecture for Pre-trained Language
    Models" (COLING 2022, arXiv:2203.01104).
    """
    if not models.writes_text(model):
        raise ValueError(
            "experts belong to decoders and encoder-decoders of mpojax (GPT-2, LLaMA, T5); this "
            f"model is a {type(model).__name__}."
        )
    config, shapes = planned_experts(model.config, model.shapes, rules)
    arrays = models.to_arrays(model)
    for path, rule in _matched(model.config, rules).items():
        for name, _ in _maps(config, path):
            matrix = f"{path}/{name}"
            _spread(arrays, matrix, rule, model.shapes.get(matrix), shapes.get(matrix))
        router = nn.Router(config.hidden_size, rule.settings, rngs=rngs)
        for where, variable in nnx.to_flat_state(nnx.state(router, nnx.Param)):
            arrays["/".join([path, "router", *map(str, where)])] = np.asarray(variable[...])
    return models.from_arrays(config, shapes, arrays)


def _spread(
    arrays: dict,
    matrix: str,
    rule: ExpertRule,
    held: mpo.MPOShape | None,
    shape: mpo.MPOShape | None,
) -> None:
    """One matrix and its bias, for all experts; in place."""

    def copies(array):
        # A view of one copy: `from_arrays` makes the stacked array.
        return np.broadcast_to(array, (rule.number, *np.shape(array)))

    bias = f"{matrix}/bias"
    if bias in arrays and not rule.share_bias:
        arrays[bias] = copies(arrays[bias])
    if held is not None:
        cores = [arrays.pop(f"{matrix}/cores/{k}") for k in range(held.num_cores)]
    elif shape is not None:
        kernel = np.asarray(arrays.pop(f"{matrix}/kernel"))
        try:
            cores = mpo.decompose(kernel, shape, rule.gauge)
        except ValueError as error:
            raise ValueError(f"{matrix}: {error}") from error
    if shape is None:
        if held is not None:
            # "switch" experts of a block in MPO form: each starts as the matrix of its chain.
            wide = tuple(np.asarray(core, np.float64) for core in cores)
            arrays[f"{matrix}/kernel"] = np.float32(mpo.to_matrix(wide, held))
        arrays[f"{matrix}/kernel"] = copies(arrays[f"{matrix}/kernel"])
        return
    for k, core in enumerate(cores):
        is_shared = rule.form == "mpoe" and k == shape.central
        arrays[f"{matrix}/cores/{k}"] = np.float32(core) if is_shared else copies(np.float32(core))


def _matched(config, rules) -> dict[str, ExpertRule]:
    if not config.generates:
        raise ValueError("an encoder's settings have no experts; see `add_experts`.")
    found = rules_lib.match(rules, config.feed_forwards(), ExpertRule)
    for path, (pattern, _) in found.items():
        if config.experts_of(path) is not None:
            raise ValueError(f"{path}, matched by rule {pattern!r}, has experts already.")
    return {path: rule for path, (_, rule) in found.items()}


def _maps(config, path: str) -> Iterator[tuple[str, tuple[int, int]]]:
    """(name, size) of the maps of a block."""
    for matrix, size in config.matrix_sizes().items():
        block, _, name = matrix.rpartition("/")
        if block == path:
            yield name, size


def _shape(path: str, name: str, rule: ExpertRule, size: tuple[int, int]) -> mpo.MPOShape:
    try:
        return rule.shape(name, *size)
    except ValueError as error:
        raise ValueError(f"{path}/{name} ({size[0]} x {size[1]}): {error}") from error
