"""Choosing how to multiply tokens with the matrices of experts that share a central core.

| strategy     | what runs                                                | wins at                |
| rebuild      | the matrices of all experts, then a product for each one | many tokens per expert |
| right_first  | R_e, then C for all tokens at once, then L_e             | separable lists        |
| left_first   | L_e, then C for all tokens at once, then R_e             | separable lists        |
| two_groups   | one expert after the other, as in `mpo.plan`             | few tokens, tiny bonds |
| three_groups | the same                                                 | few tokens, tiny bonds |

Costs are those of `mpojax.mpo.planning`, with the same constants of machines.
"""

import dataclasses
import functools

import jax.numpy as jnp

from mpojax import checks
from mpojax.mpo import contract, planning
from mpojax.mpo.experts.kernels import ORDERS, group_factors, left_product_first
from mpojax.mpo.planning import Cost, Ledger, Machine
from mpojax.mpo.shape import MPOShape

STRUCTURES = ("rebuild", "shared_core")
_ARGUMENTS = {
    "experts": checks.integer(1),
    "tokens": checks.integer(1),
    "structure": checks.one_of(*STRUCTURES) | checks.null(),
}


@dataclasses.dataclass(frozen=True)
class ExpertPlan:
    """The strategy chosen for a map of experts, with the costs it was chosen by.

    Hashable and static under `jax.jit`; `str(plan)` is a table.
    """

    shape: MPOShape
    experts: int
    tokens: int
    training: bool
    chosen: Cost
    costs: tuple[Cost, ...]

    @property
    def strategy(self) -> str:
        """ "rebuild", "right_first" or "left_first"."""
        return self.chosen.strategy

    def __str__(self) -> str:
        note = f"{self.tokens} tokens, {'training' if self.training else 'inference'}"
        return planning.cost_table(self, note, f"{self.experts} experts of ")


def plan_experts(
    shape: MPOShape,
    experts: int,
    tokens: int,
    *,
    training: bool = True,
    share_central: bool = True,
    remat: bool = True,
    structure: str | None = None,
    one_by_one: bool = False,
    machine: Machine | str | None = None,
    dtype: str = "float32",
) -> ExpertPlan:
    """Chooses how tokens meet the matrices of their experts; a pure function of static values.

    Args:
      shape: factor lists and bonds of an expert's matrix.
      experts: whose matrices are needed.
      tokens: rows of all experts together.
      training: count forward and backward.
      share_central: all experts have one central core.
      remat: in training, rebuilt matrices are built again for the backward pass, not kept.
      structure: consider "rebuild" alone, or "shared_core": all that rebuilds no matrix.
      one_by_one: consider what takes one expert after the other, too.
      machine: roofline constants, or the name of a preset; default: that of the devices in use.
      dtype: of the tokens.

    Raises:
      ValueError: experts or tokens below 1, one core, an unknown structure or machine.
    """
    values = {"experts": experts, "tokens": tokens, "structure": structure}
    checks.check(values, _ARGUMENTS)
    if shape.num_cores < 2:
        raise ValueError(f"experts need at least two cores, got factor lists {shape.in_factors}.")
    machine = planning.machine_of(machine)
    options = (training, share_central, remat, structure, one_by_one)
    return _plan(shape, experts, tokens, *options, machine, dtype)


@functools.lru_cache(maxsize=4096)
def _plan(
    shape,
    experts,
    tokens,
    training,
    share_central,
    remat,
    structure,
    one_by_one,
    machine,
    dtype,
):
    costs, size = [], jnp.dtype(dtype).itemsize
    for name in ("rebuild", *ORDERS):
        ledger = Ledger(machine, size, size)
        if name == "rebuild":
            rows, columns = shape.padded_in_features, shape.padded_out_features
            _of_experts(ledger, experts, tokens, rows, columns, times=3 if training else 1)
            _rebuild_cost(ledger, shape, experts, training, share_central, remat)
            kept = tokens * rows + (0 if remat else experts * rows * columns)
        else:
            kept = _shared_cost(ledger, shape, experts, tokens, training, share_central, name)
        totals = (ledger.flops, ledger.bytes, ledger.transposed, ledger.operations)
        costs.append(Cost(name, (), *totals, size * kept if training else 0, ledger.seconds))
    if one_by_one:
        costs += _one_by_one(shape, experts, tokens, training, machine, dtype)
    allowed = {None: costs, "rebuild": costs[:1], "shared_core": costs[1:]}[structure]
    chosen = min(allowed, key=lambda cost: cost.seconds)
    return ExpertPlan(shape, experts, tokens, training, chosen, tuple(costs))


def _one_by_one(shape, experts, tokens, training, machine, dtype):
    """Costs of contracting each expert's chain for its tokens: so many times those of one."""
    each = -(-tokens // experts)
    of_one = planning.plan(
        shape, tokens=each, training=training, machine=machine, dtype=dtype, core_dtype=dtype
    )
    sums = ("flops", "bytes", "transposed", "operations", "saved", "seconds")
    return [
        dataclasses.replace(cost, **{name: experts * getattr(cost, name) for name in sums})
        for cost in of_one.costs
        if cost.strategy in ("two_groups", "three_groups")
    ]


def _of_experts(ledger, experts, rows, inner, outer, times=1):
    """Products of `rows` in total, each expert with a matrix of its own."""
    each = rows / experts
    before = ledger.flops
    ledger.matmul(each, inner, outer, times=times * experts)
    ledger.flops = before + times * 2 * rows * inner * outer  # exact where rows do not divide
    ledger.bytes = round(ledger.bytes)


def _merge_sides(ledger, shape, experts, training):
    # In training merged twice (nothing is kept), and pulled back by two products and one transpose.
    for (p, i, j, q), (_, k, m, r) in contract.side_merge_steps(shape):
        ledger.matmul(p * i * j, q, k * m * r, times=experts * (4 if training else 1))
        ledger.transpose(p * i * j * k * m * r, times=experts * (3 if training else 1))


def _rebuild_cost(ledger, shape, experts, training, share_central, remat):
    i, k, a, j, m, b = group_factors(shape)
    p, _, _, q = shape.core_shapes[shape.central]
    _merge_sides(ledger, shape, experts, training)
    forwards = 2 if training and remat else 1
    # The first product runs once more in the backward pass where the matrices were kept.
    first = forwards + (2 if training else 0) + (1 if training and not remat else 0)
    last = forwards + (2 if training else 0)
    # (L C) R: (i j, p)(p, k m q), then (i j k m, q)(q, a b). L (C R): likewise from the right.
    if left_product_first(shape):
        one, other = (i * j, p, k * m * q), (i * j * k * m, q, a * b)
    else:
        one, other = (a * b, q, p * k * m), (a * b * k * m, p, i * j)
    has_left, has_right = shape.central > 0, shape.central < shape.num_cores - 1
    if has_left and has_right:
        # One C for all experts: their L (or R) stacked in rows, one product.
        if share_central:
            ledger.matmul(experts * one[0], *one[1:], times=first)
        else:
            ledger.matmul(*one, times=first * experts)
    ledger.matmul(*other, times=last * experts)
    ledger.transpose(i * k * a * j * m * b, times=experts * (forwards + (1 if training else 0)))


def _shared_cost(ledger, shape, experts, tokens, training, share_central, order):
    """Adds the products of one order; returns elements kept for the backward pass."""
    i, k, a, j, m, b = group_factors(shape)
    p, _, _, q = shape.core_shapes[shape.central]
    products = 3 if training else 1
    _merge_sides(ledger, shape, experts, training)
    # Vectors of a token, their size before and after, for the three groups; then what is moved.
    # A token (i k a): R_e makes a -> b q, C k q -> m p, L_e i p -> j, that is (i k b q), (i b m p),
    # (j m b). From the left: L_e i -> j p, C k p -> m q, R_e a q -> b. Moved is what must be
    # transposed for the contracted axes to be neighbours; nothing where one of them is 1.
    if order == "right_first":
        steps = ((i * k, a, b * q), (i * b, k * q, m * p), (b * m, i * p, j))
        moved = (
            i * k * b * q if k > 1 and b > 1 else 0,
            i * b * m * p if i > 1 and b * m > 1 else 0,
            j * b * m if j > 1 and b * m > 1 else 0,
        )
    else:
        steps = ((k * a, i, j * p), (a * j, k * p, m * q), (j * m, a * q, b))
        moved = (
            i * k * a if i > 1 and k * a > 1 else 0,
            k * a * j * p if k > 1 and a * j > 1 else 0,
            a * j * m * q if a > 1 and j * m > 1 else 0,
        )
    sides = (shape.central < shape.num_cores - 1, True, shape.central > 0)
    kept = tokens * shape.padded_in_features
    for step, (vectors, inner, outer) in enumerate(steps):
        has_cores = sides[step] if order == "right_first" else sides[2 - step]
        if not has_cores:
            continue
        if step == 1 and share_central:
            ledger.matmul(tokens * vectors, inner, outer, times=products)
        else:
            _of_experts(ledger, experts, tokens * vectors, inner, outer, times=products)
        if step < 2:
            kept += tokens * vectors * outer
    for size in moved:
        if size:
            ledger.transpose(tokens * size, times=products, intermediate=True)
    return kept
