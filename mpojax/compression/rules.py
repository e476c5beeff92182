"""Compression rules: (regular expression over matrix paths, settings), checked before any work."""

import dataclasses
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from mpojax import checks, models, mpo

FORMS = ("mpo", "low_rank")
DEFAULT, _IN_LAYERS = "default", r"(.*/)?layers/[0-9]+/.+"


class Rule(tuple):
    """A pattern and the settings of all that it matches: the pair (pattern, dict), by keywords.

    It stands wherever such a pair does, in `compress`, `add_adapters` and `add_experts`, and is
    checked there, as a pair is, since each reads other settings: the fields of
    `mpojax.compression.Settings`, `AdapterSettings` and `ExpertRule`.

    Args:
      pattern: regular expression that must match a whole path, such as "layers/0/attention/query".
      **settings: fields by name.

    Example:

        >>> import mpojax as mj
        >>> mj.Rule(".*/(query|key)", bond=64)
        Rule('.*/(query|key)', bond=64)
        >>> mj.Rule(".*/(query|key)", bond=64) == (".*/(query|key)", {"bond": 64})
        True
    """

    __slots__ = ()

    def __new__(cls, pattern: str, /, **settings: Any):
        return super().__new__(cls, (pattern, settings))

    def __getnewargs_ex__(self):
        return (self[0],), self[1]

    def __repr__(self) -> str:
        return f"Rule({', '.join([repr(self[0]), *(f'{n}={v!r}' for n, v in self[1].items())])})"


Rules = Sequence[Rule | tuple[str, Mapping[str, Any]]]


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of the chains that the matrices of one rule become.

    Attributes:
      bond: cap for every bond.
      bonds: one value for each bond.
      rank: low rank, W = A B with this inner size, at most min(in_features, out_features): the
        two-core chain with factors of 1.
      tolerance: smallest bonds with a guaranteed relative error of at most this.
      cores: number of cores (5 where factor lists are not given).
      in_factors, out_factors: factor lists; products above the size mean zero-padding. Not given:
        the published ones of this size, else automatic ones.
      gauge: one of `mpojax.mpo.GAUGES`; "identity" needs full bonds.
      form: "mpo", or "low_rank" for the two-core chain with its rank from a cap or the budget.
      search: choose the factor lists too: the chain of least error, low rank among them, that has
        at most as many parameters as low rank would get from the budget, or from `rank` or `bond`.
      data_aware: least error of the outputs on a calibration set instead of the weights.
      ridge: see `mpojax.mpo.regularized`; default 0.001, and 1 for the row frequencies of a table
        (add-one smoothing). Only with `data_aware`.
    """

    bond: int | None = None
    bonds: tuple[int, ...] | None = None
    rank: int | None = None
    tolerance: float | None = None
    cores: int | None = None
    in_factors: tuple[int, ...] | None = None
    out_factors: tuple[int, ...] | None = None
    gauge: str = "central"
    form: str = "mpo"
    search: bool = False
    data_aware: bool = False
    ridge: float | None = None

    def __post_init__(self):
        sized = [n for n in ("bond", "bonds", "rank", "tolerance") if getattr(self, n) is not None]
        if len(sized) > 1:
            raise ValueError(f"{' and '.join(sized)} exclude each other; give one of them.")
        for name in ("bond", "rank", "cores"):
            value = getattr(self, name)
            if value is not None and not (_is_int(value) and value >= 1):
                raise ValueError(f"{name}={value!r} must be an integer of at least 1.")
        for name in ("bonds", "in_factors", "out_factors"):
            value = getattr(self, name)
            if value is None:
                continue
            if isinstance(value, str) or not all(_is_int(v) and v >= 1 for v in value):
                raise ValueError(f"{name}={value!r} must be a list of integers of at least 1.")
            object.__setattr__(self, name, tuple(value))
        if self.tolerance is not None and not 0.0 <= self.tolerance < 1.0:
            raise ValueError(f"tolerance={self.tolerance!r} must lie in [0, 1).")
        if self.gauge not in mpo.GAUGES:
            raise ValueError(f"gauge={self.gauge!r} must be one of {', '.join(mpo.GAUGES)}.")
        if self.form not in FORMS:
            raise ValueError(f"form={self.form!r} must be one of {', '.join(FORMS)}.")
        if (self.in_factors is None) != (self.out_factors is None):
            raise ValueError("in_factors and out_factors go together; give both or neither.")
        if self.in_factors is not None and self.cores not in (None, len(self.in_factors)):
            raise ValueError(
                f"cores={self.cores} contradicts factor lists of {len(self.in_factors)}."
            )
        if self.is_low_rank and (self.cores is not None or self.in_factors is not None):
            raise ValueError(
                "low rank is always the two-core chain: leave out cores and factor lists."
            )
        self._check_search_and_data_aware()
        if self.gauge == "identity" and sized:
            raise ValueError(f"gauge='identity' is exact only at full bonds; leave out {sized[0]}.")

    def _check_search_and_data_aware(self):
        for name in ("search", "data_aware"):
            if not isinstance(value := getattr(self, name), bool):
                raise ValueError(f"{name}={value!r} must be True or False.")
            if value and self.tolerance is not None:
                raise ValueError(
                    f"tolerance bounds the plain error; leave it out with {name}=True."
                )
            if value and self.gauge == "identity":
                raise ValueError(f"gauge='identity' is exact already; leave out {name}=True.")
        given = [n for n in ("cores", "in_factors", "bonds") if getattr(self, n) is not None]
        if self.search and given:
            raise ValueError(f"search=True chooses the factor lists; leave out {given[0]}.")
        if self.ridge is not None:
            number = isinstance(self.ridge, int | float) and not isinstance(self.ridge, bool)
            if not (number and 0 <= self.ridge < float("inf")):
                raise ValueError(f"ridge={self.ridge!r} must be a finite number of at least 0.")
            if not self.data_aware:
                raise ValueError("ridge belongs to data_aware=True; leave it out or set both.")

    @property
    def is_low_rank(self) -> bool:
        """True if the chain is the two-core one; before a search, which starts from its size."""
        return self.rank is not None or self.form == "low_rank" or self.search

    @property
    def leaves_bonds_open(self) -> bool:
        """True if a budget may choose the bonds."""
        return self.bond is None and self.bonds is None and self.rank is None

    def full_shape(self, in_features: int, out_features: int) -> mpo.MPOShape:
        """The chain at full bonds for a matrix of this size."""
        if self.is_low_rank:
            return mpo.MPOShape.low_rank(in_features, out_features)
        if self.in_factors is not None:
            return mpo.MPOShape(
                self.in_factors,
                self.out_factors,
                in_features=in_features,
                out_features=out_features,
            )
        size = (in_features, out_features, self.cores or 5)
        return mpo.MPOShape.published(*size) or mpo.MPOShape.balanced(*size)

    def cut(self, full: mpo.MPOShape) -> mpo.MPOShape:
        """`full` with the bonds that the settings fix; unchanged where they fix none.

        Raises:
          ValueError: a rank or bonds above the full ones (`bond` is a cap and may be).
        """
        if self.rank is not None:
            return full.with_bonds((self.rank,))
        if self.bonds is not None:
            return full.with_bonds(self.bonds)
        return full if self.bond is None else full.with_bonds(self.bond)


def default_matrices(config: models.Config) -> tuple[str, ...]:
    """Matrices that the pattern "default" of a rule stands for: those worth compressing.

    All matrices of the layers, the token embedding, and a language model's own output map; not
    heads, poolers and the small embeddings of positions and token types.

        >>> sizes = {"hidden_size": 8, "num_layers": 1, "num_heads": 2, "intermediate_size": 16}
        >>> default_matrices(models.DecoderConfig(vocab_size=99, tied=False, **sizes))
        ('(.*/)?layers/[0-9]+/.+', 'embeddings/word', 'head')
    """
    return _default(models.matrix_sizes(config))


def _default(sizes: Mapping[str, tuple[int, int]]) -> tuple[str, ...]:
    found = [_IN_LAYERS, "embeddings/word"]
    # A language model's head has an output for each token.
    if "head" in sizes and sizes["head"][1] == sizes["embeddings/word"][0]:
        found.append("head")
    return tuple(found)


@dataclasses.dataclass(frozen=True)
class Target:
    """One matrix to compress: its settings, the full chain, and the chain with fixed bonds."""

    path: str
    settings: Settings
    full: mpo.MPOShape
    cut: mpo.MPOShape


def resolve(
    rules: Rules,
    sizes: Mapping[str, tuple[int, int]],
    already_mpo: Mapping[str, mpo.MPOShape],
    default_bond: int | None = None,
) -> list[Target]:
    """Matches rules against the matrices of a model.

    Args:
      rules: (regular expression, settings); an expression must match a whole matrix path.
        "default" stands for those of `default_matrices`.
      sizes: {matrix path: (in_features, out_features)} of the model.
      already_mpo: shapes of matrices that are in MPO form.
      default_bond: cap for rules that say nothing about bonds.

    Returns:
      Targets in model order.

    Raises:
      ValueError: anything wrong with the rules; see the message.
    """
    owner = match(_expanded(rules, sizes), sizes)
    for path, (pattern, settings) in owner.items():
        if path in already_mpo:
            raise ValueError(
                f"{path}, matched by rule {pattern!r}, is in MPO form already; merge(model) "
                "makes it dense again."
            )
        if default_bond is not None and settings.leaves_bonds_open and settings.tolerance is None:
            owner[path] = (pattern, dataclasses.replace(settings, bond=default_bond))
    return [_target(path, *owner[path], sizes[path]) for path in sizes if path in owner]


def _expanded(rules, sizes: Mapping[str, tuple[int, int]]):
    """The rules with patterns in the place of "default"."""
    check_list(rules)
    expanded = []
    for rule in rules:
        is_default = isinstance(rule, tuple | list) and rule and rule[0] == DEFAULT
        patterns = _default(sizes) if is_default else ()
        expanded += [(pattern, *rule[1:]) for pattern in patterns] or [rule]
    return expanded


def match(rules: Rules, paths: Iterable[str], kind: type = Settings) -> dict[str, tuple[str, Any]]:
    """{path: (pattern, settings)} of the paths that a rule matches; `kind` as for `parse`.

    Raises:
      ValueError: malformed rules, one that matches nothing, two that match the same path.
    """
    check_list(rules)
    paths = list(paths)
    owner: dict[str, tuple[str, Any]] = {}
    for rule in rules:
        pattern, settings = parse(rule, kind)
        matched = [path for path in paths if re.fullmatch(pattern, path)]
        if not matched:
            raise ValueError(
                f"rule {pattern!r} matches no matrix. It must match a whole path; this model has "
                f"{_examples(paths)}."
            )
        for path in matched:
            if path in owner:
                raise ValueError(
                    f"rules {owner[path][0]!r} and {pattern!r} both match {path}; make them "
                    "exclude each other."
                )
            owner[path] = (pattern, settings)
    return owner


def check_list(rules) -> None:
    """Raises ValueError unless there is at least one rule, in a list."""
    is_list = isinstance(rules, Collection) and not isinstance(rules, str | bytes | Mapping | Rule)
    if not is_list or not len(rules):
        raise ValueError(
            f"rules={rules!r} must be a non-empty list of (pattern, settings) pairs, such as "
            '[Rule(".*/query", bond=64)].'
        )


def parse(rule, kind: type = Settings) -> tuple[str, Any]:
    """A rule whose settings are checked in themselves, without a model.

    Args:
      rule: (pattern, dict of settings), or the same as a `Rule`.
      kind: the dataclass of its settings, which checks them when it is made.

    Raises:
      ValueError: no pair, no regular expression, unknown settings, or settings that clash.
    """
    if not isinstance(rule, list | tuple) or len(rule) != 2:
        raise ValueError(f"rule {rule!r} must be a pair (pattern, settings).")
    pattern, settings = rule
    try:
        re.compile(pattern)
    except (re.error, TypeError) as error:
        raise ValueError(f"rule {pattern!r} is not a regular expression: {error}.") from error
    if not isinstance(settings, Mapping):
        raise ValueError(f"rule {pattern!r}: settings {settings!r} must be a dict.")
    known = sorted(field.name for field in dataclasses.fields(kind))
    if unknown := sorted(map(str, set(settings).difference(known))):
        meant = [f"{name}{checks.did_you_mean(name, known)}" for name in unknown]
        near = [text for text, name in zip(meant, unknown, strict=True) if text != name]
        raise ValueError(
            f"rule {pattern!r} has unknown settings {', '.join(unknown)}; known are "
            f"{', '.join(known)}{'; ' * bool(near)}{checks.listed(near, '; ')}."
        )
    try:
        return pattern, kind(**settings)
    except (TypeError, ValueError) as error:
        raise ValueError(f"rule {pattern!r}: {error}") from error


def _target(path: str, pattern: str, settings: Settings, size: tuple[int, int]) -> Target:
    try:
        full = settings.full_shape(*size)
        return Target(path, settings, full, settings.cut(full))
    except ValueError as error:
        raise ValueError(
            f"rule {pattern!r} does not fit {path} ({size[0]} x {size[1]}): {error}"
        ) from error


def _examples(paths: Iterable[str]) -> str:
    seen = dict.fromkeys(re.sub(r"layers/\d+/", "layers/<i>/", path) for path in paths)
    return ", ".join(seen)


def _is_int(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
