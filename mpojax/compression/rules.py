"""Compression rules: (regular expression over matrix paths, settings), checked before any work."""

import dataclasses
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from mpojax import checks, models, mpo


class Rule(tuple):
    """A pattern and the settings of all that it matches: the pair (pattern, dict), by keywords.

    It stands wherever such a pair does, in `compress`, `add_adapters` and `add_experts`, and is
    checked there, as a pair is, since each reads other settings: the fields of
    `mpojax.compression.MatrixRule`, `AdapterRule` and `ExpertRule`.

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
        # `copy` and `pickle` call __new__ with these: settings are keywords there.
        return (self[0],), self[1]

    def __repr__(self) -> str:
        return f"Rule({', '.join([repr(self[0]), *(f'{n}={v!r}' for n, v in self[1].items())])})"


Rules = Sequence[Rule | tuple[str, Mapping[str, Any]]]


# Names that stand for patterns in the place of one, see `named_patterns`.
_IN_LAYERS = r"(.*/)?layers/[0-9]+/.+"
_SIZES = checks.sequence(checks.integer(1))


@checks.settings()
class MatrixRule:
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

    bond: int | None = checks.field(checks.integer(1), None)
    bonds: tuple[int, ...] | None = checks.field(_SIZES, None)
    rank: int | None = checks.field(checks.integer(1), None)
    tolerance: float | None = checks.field(checks.number(0, below=1), None)
    cores: int | None = checks.field(checks.integer(1), None)
    in_factors: tuple[int, ...] | None = checks.field(_SIZES, None)
    out_factors: tuple[int, ...] | None = checks.field(_SIZES, None)
    gauge: str = checks.field(checks.one_of(*mpo.GAUGES), "central")
    form: str = checks.field(checks.one_of("mpo", "low_rank"), "mpo")
    search: bool = checks.field(checks.flag(), False)
    data_aware: bool = checks.field(checks.flag(), False)
    ridge: float | None = checks.field(checks.number(0), None)

    def __post_init__(self):
        sized = self._given("bond", "bonds", "rank", "tolerance")
        lists = self.in_factors, self.out_factors
        chosen = "search" if self.search else "data_aware" if self.data_aware else None
        is_identity = self.gauge == "identity"
        checks.check_clashes(
            {
                f"{' and '.join(sized)} exclude each other; give one of them": len(sized) > 1,
                "in_factors and out_factors go together; give both or neither": (
                    lists.count(None) == 1
                ),
                f"cores={self.cores} contradicts factor lists of {len(lists[0] or ())}": (
                    lists[0] is not None and self.cores not in (None, len(lists[0]))
                ),
                "low rank is always the two-core chain: leave out cores and factor lists": (
                    self.is_low_rank and self._given("cores", "in_factors")
                ),
                f"tolerance bounds the plain error; leave it out with {chosen}=True": (
                    chosen and self.tolerance is not None
                ),
                f"gauge='identity' is exact already; leave out {chosen}=True": (
                    chosen and is_identity
                ),
                "search=True chooses the factor lists; leave out bonds": (
                    self.search and self.bonds is not None
                ),
                "ridge belongs to data_aware=True; leave it out or set both": (
                    self.ridge is not None and not self.data_aware
                ),
                f"gauge='identity' is exact only at full bonds; leave out {(sized or [''])[0]}": (
                    is_identity and sized
                ),
            }
        )

    def _given(self, *names: str) -> list[str]:
        return [name for name in names if getattr(self, name) is not None]

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
        # Five cores, as in the papers.
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


def named_patterns(sizes: Mapping[str, tuple[int, int]]) -> dict[str, tuple[str, ...]]:
    """{name: patterns} that rules may use for a model of this library with matrices of these sizes.

    "layers": all matrices of the layers. "all" (earlier "default"): those, the token embedding, and
    the output map of a language model; not heads of tasks, poolers and the small embeddings of
    positions and token types.

        >>> named_patterns({"embeddings/word": (99, 8), "head": (8, 99)})["all"]
        ('(.*/)?layers/[0-9]+/.+', 'embeddings/word', 'head')
    """
    found = [_IN_LAYERS, "embeddings/word"]
    # A language model's head has an output for each token.
    if "head" in sizes and sizes["head"][1] == sizes["embeddings/word"][0]:
        found.append("head")
    return {"layers": (_IN_LAYERS,), "all": tuple(found), "default": tuple(found)}


@dataclasses.dataclass(frozen=True)
class Target:
    """One matrix to compress: its settings, the full chain, and the chain with fixed bonds."""

    path: str
    settings: MatrixRule
    full: mpo.MPOShape
    cut: mpo.MPOShape


def resolve(
    rules: Rules,
    sizes: Mapping[str, tuple[int, int]],
    already_mpo: Mapping[str, mpo.MPOShape],
    default_bond: int | None = None,
    *,
    named: Mapping[str, Sequence[str]] | None = None,
    refused: Mapping[str, str] = MappingProxyType({}),
) -> list[Target]:
    """Matches rules against the matrices of a model.

    Args:
      rules: (regular expression, settings); an expression must match a whole matrix path, or is a
        name out of `named`.
      sizes: {matrix path: (in_features, out_features)} of the model.
      already_mpo: shapes of matrices that are in MPO form.
      default_bond: cap for rules that say nothing about bonds.
      named: {name: patterns}; None for those of a model of this library.
      refused: {path: reason} of layers that no rule may name.

    Returns:
      Targets in model order.

    Raises:
      ValueError: anything wrong with the rules; see the message.
    """
    named = named_patterns(sizes) if named is None else named
    owner = match(_expanded(rules, named), sizes, refused=refused)
    for path, (pattern, settings) in owner.items():
        if path in already_mpo:
            raise ValueError(
                f"{path}, matched by rule {pattern!r}, is in MPO form already; merge(model) "
                "makes it dense again."
            )
        if default_bond is not None and settings.leaves_bonds_open and settings.tolerance is None:
            owner[path] = (pattern, dataclasses.replace(settings, bond=default_bond))
    return [_target(path, *owner[path], sizes[path]) for path in sizes if path in owner]


def patterns(rules: Rules) -> list[str]:
    """The patterns of rules that say nothing more.

    Raises:
      ValueError: rules that are malformed, or have settings.
    """
    check_list(rules)
    found = [parse(rule) for rule in rules]
    for pattern, settings in found:
        if settings != MatrixRule():
            raise ValueError(
                f"rule {pattern!r} has settings, but a method chooses the form of every matrix: "
                "leave the settings out, or the method."
            )
    return [pattern for pattern, _ in found]


def planned_shapes(
    config: models.Config, rules: Rules, *, bond: int | None = None
) -> dict[str, mpo.MPOShape]:
    """{matrix path: shape} that `compress` would give with these rules, without any weights.

    Args:
      config: settings of the model; all its matrices count as dense.
      rules: as for `compress`.
      bond: cap for the rules that say nothing about bonds.

    Raises:
      ValueError: rules that do not fit, or whose shapes depend on the weights (a tolerance, or
        another setting that looks at them).
    """
    targets = resolve(rules, config.matrix_sizes(), {}, bond)
    for target in targets:
        for name in ("tolerance", "search"):
            if getattr(target.settings, name):
                raise ValueError(
                    f"{target.path}: {name}={getattr(target.settings, name)!r} chooses the chain "
                    "by the weights; it has no shape without them."
                )
    return {target.path: target.cut for target in targets}


def _expanded(rules, named: Mapping[str, Sequence[str]]):
    """The rules with patterns in the place of names."""
    check_list(rules)
    expanded = []
    for rule in rules:
        is_pair = isinstance(rule, tuple | list) and rule and isinstance(rule[0], str)
        patterns = named.get(rule[0], ()) if is_pair else ()
        expanded += [(pattern, *rule[1:]) for pattern in patterns] or [rule]
    return expanded


def match(
    rules: Rules,
    paths: Iterable[str],
    kind: type = MatrixRule,
    refused: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, tuple[str, Any]]:
    """{path: (pattern, settings)} of the paths that a rule matches; `kind` as for `parse`.

    Args:
      refused: {path: reason} of what looks like a matrix and is none, for the message.

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
            reasons = [f"{p}: {why}" for p, why in refused.items() if re.fullmatch(pattern, p)]
            what = reasons[0] if reasons else "It must match a whole path"
            raise ValueError(
                f"rule {pattern!r} matches no matrix. {what}; this model has {_examples(paths)}."
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


def parse(rule, kind: type = MatrixRule) -> tuple[str, Any]:
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
    return pattern, checks.from_mapping(kind, settings, f"rule {pattern!r}")


def _target(path: str, pattern: str, settings: MatrixRule, size: tuple[int, int]) -> Target:
    try:
        full = settings.full_shape(*size)
        return Target(path, settings, full, settings.cut(full))
    except ValueError as error:
        raise ValueError(
            f"rule {pattern!r} does not fit {path} ({size[0]} x {size[1]}): {error}"
        ) from error


def _examples(paths: Iterable[str]) -> str:
    seen = dict.fromkeys(re.sub(r"layers/\d+/", "layers/<i>/", path) for path in paths)
    return checks.listed(list(seen)) or "none"
