"""The static description of a chain: factor lists, bond dimensions, counts."""

import dataclasses
import functools
import math
import numbers
import operator

from mpojax import checks
from mpojax.mpo import factors as factors_lib
from mpojax.mpo import published as published_lib


@dataclasses.dataclass(frozen=True)
class MPOShape:
    """Factor lists and bond dimensions of a matrix in MPO form; hashable, static under `jax.jit`.

    Core k has shape (d_{k-1}, i_k, j_k, d_k), d_0 = d_n = 1. Row-major digits: the first factor is
    the slowest. Low rank is the chain with factor lists (in, 1) and (1, out); factors of 1 are
    legal.

    Attributes:
      in_factors: i_1..i_n, the factors of the (padded) rows.
      out_factors: j_1..j_n, the factors of the (padded) columns.
      bonds: d_1..d_{n-1}, the inner bond dimensions; None on construction means full bonds. Stored
        clipped so that d_k <= d_{k-1} i_k j_k and d_k <= i_{k+1} j_{k+1} d_{k+1}: a larger bond
        would hold no more.
      in_features: rows of the matrix before zero-padding, at most the product of `in_factors`.
      out_features: columns before zero-padding, at most the product of `out_factors`.
      pivoted: low rank r as W = A [1 B] P, see `mpojax.mpo.pivoted`: r of the columns span the
        others, the chain holds B (r, out - r) and the order of the columns.

    Raises:
      ValueError: lists of different lengths, a factor below 1, a bond below 1 or above its full
        dimension, features that the factors cannot hold, or a pivoted chain that is no low rank.
      TypeError: a factor or bond that is not an integer.

    Example:
      >>> from mpojax import mpo
      >>> shape = mpo.MPOShape((4, 8, 4), (4, 16, 4)).with_bonds(8)
      >>> shape.core_shapes
      ((1, 4, 4, 8), (8, 8, 16, 8), (8, 4, 4, 1))
      >>> shape.num_params, round(shape.ratio, 2)
      (8448, 0.26)
    """

    in_factors: tuple[int, ...]
    out_factors: tuple[int, ...]
    bonds: tuple[int, ...] | None = None
    in_features: int | None = None
    out_features: int | None = None
    pivoted: bool = False

    def __post_init__(self):
        # Normalised (tuples, clipped bonds, no None), equal shapes are equal keys of jit's cache.
        set_field = functools.partial(object.__setattr__, self)
        set_field("in_factors", _as_factors("in_factors", self.in_factors))
        set_field("out_factors", _as_factors("out_factors", self.out_factors))
        if len(self.in_factors) != len(self.out_factors):
            raise ValueError(
                f"in_factors {self.in_factors} and out_factors {self.out_factors} must have the "
                "same length, one pair for each core; fill the shorter list up with factors of 1."
            )
        for name, list_name in (("in_features", "in_factors"), ("out_features", "out_factors")):
            features, listed = getattr(self, name), getattr(self, list_name)
            padded = math.prod(listed)
            set_field(name, padded if features is None else operator.index(features))
            if not 1 <= getattr(self, name) <= padded:
                raise ValueError(
                    f"{name}={features} does not fit {list_name} {listed} with product {padded}: "
                    f"it must lie in 1..{padded}. Choose factors with a larger product."
                )
        set_field("bonds", self._checked_bonds(self.bonds))
        if self.pivoted and not self._may_be_pivoted:
            raise ValueError(
                f"a pivoted chain is low rank below its {self.out_features} columns, not "
                f"{self.in_factors} x {self.out_factors} with bonds {self.bonds}."
            )

    @property
    def _may_be_pivoted(self) -> bool:
        # At r = out every column is a pivot, and B (r, out - r) is empty.
        return self.is_low_rank and not self.is_padded and self.bonds[0] < self.out_features

    def _checked_bonds(self, bonds) -> tuple[int, ...]:
        full = self.full_bond_dims
        if bonds is None:
            return full
        bonds = tuple(operator.index(bond) for bond in bonds)
        if len(bonds) != len(full):
            raise ValueError(
                f"bonds {bonds} has {len(bonds)} entries; a chain of {self.num_cores} cores has "
                f"{len(full)} inner bonds."
            )
        for k, (bond, limit) in enumerate(zip(bonds, full, strict=True), start=1):
            if not 1 <= bond <= limit:
                raise ValueError(
                    f"bond {k} is {bond}, outside 1..{limit} for factor lists {self.in_factors} x "
                    f"{self.out_factors}. Use with_bonds(cap) to cap all bonds at once."
                )
        # A bond is the rank of an unfolding, at most that of its neighbour times the site between.
        bonds = [1, *bonds, 1]
        for k, size in enumerate(self.site_sizes, start=1):
            bonds[k] = min(bonds[k], bonds[k - 1] * size)
        # This keeps what the first pass reached: lowered to d_(k+1) a_(k+1), d_k still has
        # d_(k+1) <= d_k a_(k+1).
        for k, size in reversed(list(enumerate(self.site_sizes))):
            bonds[k] = min(bonds[k], bonds[k + 1] * size)
        return tuple(bonds[1:-1])

    @classmethod
    def balanced(cls, in_features: int, out_features: int, n: int = 5) -> "MPOShape":
        """Full-bond shape with automatic factor lists of length `n`, padded where needed."""
        padded_in = factors_lib.padded_size(in_features, n)
        padded_out = factors_lib.padded_size(out_features, n)
        lists = factors_lib.balanced_factor_lists(padded_in, padded_out, n)
        return cls(*lists, in_features=in_features, out_features=out_features)

    @classmethod
    def published(cls, in_features: int, out_features: int, n: int = 5) -> "MPOShape | None":
        """Full-bond shape with the factor lists of the MPOP authors; None where they gave none.

        30522 rows (BERT's vocabulary) are padded to 30720. Sources: `mpojax.mpo.published`.
        """
        lists = published_lib.published_factor_lists(in_features, out_features, n)
        if lists is None:
            return None
        return cls(*lists, in_features=in_features, out_features=out_features)

    @classmethod
    def low_rank(
        cls, in_features: int, out_features: int, rank: int | None = None, pivoted: bool = False
    ) -> "MPOShape":
        """The two-core chain W = A B with A (in_features, rank) and B (rank, out_features).

        `pivoted`, with a rank below `out_features`: W = A [1 B] P, see `mpojax.mpo.pivoted`.
        """
        bonds = None if rank is None else (rank,)
        return cls((in_features, 1), (1, out_features), bonds, pivoted=pivoted)

    def with_bonds(self, bonds: int | tuple[int, ...] | None) -> "MPOShape":
        """The same factors with other bonds: a cap, one value each, or None for full bonds."""
        if isinstance(bonds, numbers.Integral):
            checks.check_value("bond cap", bonds, checks.integer(1))
            bonds = tuple(min(bonds, full) for full in self.full_bond_dims)
        return dataclasses.replace(self, bonds=bonds)

    @property
    def num_cores(self) -> int:
        """n, the number of cores."""
        return len(self.in_factors)

    @property
    def num_arrays(self) -> int:
        """The n cores, and the order of a pivoted chain's columns."""
        return self.num_cores + self.pivoted

    @property
    def central(self) -> int:
        """Index of the central core, (n - 1) // 2."""
        return (self.num_cores - 1) // 2

    @property
    def site_sizes(self) -> tuple[int, ...]:
        """a_k = i_k * j_k."""
        return tuple(i * j for i, j in zip(self.in_factors, self.out_factors, strict=True))

    @property
    def full_bond_dims(self) -> tuple[int, ...]:
        """Largest useful bonds, min(a_1..a_k, a_{k+1}..a_n): the chain is exact there."""
        # Unfolding after core k: prod(a_1..a_k) rows, prod(a_{k+1}..a_n) columns.
        sizes = self.site_sizes
        return tuple(
            min(math.prod(sizes[:k]), math.prod(sizes[k:])) for k in range(1, self.num_cores)
        )

    @property
    def bond_dims(self) -> tuple[int, ...]:
        """d_1..d_{n-1}, the inner bond dimensions."""
        return self.bonds

    @property
    def core_shapes(self) -> tuple[tuple[int, int, int, int], ...]:
        """Shape (d_{k-1}, i_k, j_k, d_k) of every core."""
        bonds = (1, *self.bonds, 1)
        if self.pivoted:
            rank = self.bonds[0]
            return (1, self.in_features, 1, rank), (rank, 1, self.out_features - rank, 1)
        return tuple(
            (bonds[k], i, j, bonds[k + 1])
            for k, (i, j) in enumerate(zip(self.in_factors, self.out_factors, strict=True))
        )

    @property
    def padded_in_features(self) -> int:
        """Product of `in_factors`: rows after zero-padding."""
        return math.prod(self.in_factors)

    @property
    def padded_out_features(self) -> int:
        """Product of `out_factors`: columns after zero-padding."""
        return math.prod(self.out_factors)

    @property
    def is_padded(self) -> bool:
        """True if the matrix is smaller than the product of its factors."""
        return (self.in_features, self.out_features) != (
            self.padded_in_features,
            self.padded_out_features,
        )

    @property
    def is_full(self) -> bool:
        """True if every bond is full, so that the chain can hold any matrix."""
        return self.bonds == self.full_bond_dims

    @property
    def is_low_rank(self) -> bool:
        """True for the two-core chain W = A B."""
        return self.in_factors[1:] == (1,) and self.out_factors[:1] == (1,)

    @property
    def num_params(self) -> int:
        """Parameters in all cores, and the entries of a pivoted chain's order."""
        order = self.out_features if self.pivoted else 0
        return sum(math.prod(core) for core in self.core_shapes) + order

    @property
    def num_central_params(self) -> int:
        """Parameters in the central core."""
        return math.prod(self.core_shapes[self.central])

    @property
    def num_auxiliary_params(self) -> int:
        """Parameters in the auxiliary cores."""
        return self.num_params - self.num_central_params

    @property
    def num_dense_params(self) -> int:
        """Parameters in the dense matrix, without padding."""
        return self.in_features * self.out_features

    @property
    def ratio(self) -> float:
        """num_params / num_dense_params: below 1 the chain saves storage."""
        return self.num_params / self.num_dense_params

    def to_dict(self) -> dict:
        """A JSON-able description; `from_dict` reads it back."""
        fields = dataclasses.asdict(self)
        return fields if self.pivoted else {k: v for k, v in fields.items() if k != "pivoted"}

    @classmethod
    def from_dict(cls, fields: dict) -> "MPOShape":
        """Inverse of `to_dict`."""
        checks.check_names(fields, [f.name for f in dataclasses.fields(cls)], "MPOShape")
        tuples = ("in_factors", "out_factors", "bonds")
        return cls(**{key: tuple(v) if key in tuples and v else v for key, v in fields.items()})


def shape_from_cores(cores) -> MPOShape:
    """Factor lists and bonds of given cores.

    Raises:
      ValueError: neighbouring cores disagree on their bond, or a core is not four-dimensional.
    """
    shapes = [tuple(core.shape) for core in cores]
    ends = (1, *(s[3] for s in shapes if len(s) == 4))
    if any(len(s) != 4 for s in shapes) or [s[0] for s in shapes] != [*ends[:-1]] or ends[-1] != 1:
        raise ValueError(
            f"core shapes {shapes} do not form a chain: core k must be (d_(k-1), i_k, j_k, "
            "d_k) with outer bonds of 1. Leading axes go through jax.vmap."
        )
    full = MPOShape(tuple(s[1] for s in shapes), tuple(s[2] for s in shapes))
    # Cores may have bonds above the full ones; a shape says what they can hold.
    return full.with_bonds(tuple(map(min, (s[3] for s in shapes[:-1]), full.full_bond_dims)))


def _as_factors(name, values) -> tuple[int, ...]:
    values = tuple(operator.index(value) for value in values)
    if not values or min(values) < 1:
        raise ValueError(
            f"{name} must be a non-empty list of integers of at least 1, got {values}."
        )
    return values
