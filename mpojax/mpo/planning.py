"""Choosing how to multiply activations with a chain: a roofline over every strategy.

| strategy            | what runs                                          | wins at               |
| rebuild             | the matrix once, then one matmul                   | many tokens           |
| two_groups          | cores merged into two, contracted with activations | few tokens            |
| three_groups        | (L, C, R) contracted one after the other           | few tokens, tiny bond |
| chain_left_to_right | all cores, one after the other from the left       | few tokens, tiny bond |
| chain_right_to_left | the same from the right                            | few tokens, tiny bond |
| low_rank            | (x A) B, two matmuls (two-core chains alone)       | rank below full       |
| pivoted             | u = x A; u and u B in order (pivoted chains alone) | always, or nearly     |

The number of multiply-adds alone misleads: a path with the fewest trades one compute-bound product
for intermediates many times larger than the activations. So an operation costs
max(FLOPs / peak, bytes / bandwidth) + transposed bytes / transpose bandwidth + a constant. Bytes
follow from the dtypes of activations and cores, and on TPUs from their tiles: a minor axis of 4
entries takes 128 lanes there.
"""

import dataclasses
import functools
import math

import jax.numpy as jnp

from mpojax import checks, devices
from mpojax.mpo import contract
from mpojax.mpo.shape import MPOShape

STRATEGIES = (
    "rebuild",
    "two_groups",
    "three_groups",
    "chain_left_to_right",
    "chain_right_to_left",
)
# Of two-core chains: plain matmuls, which differentiate as they are and keep x A, too.
MATMULS = ("low_rank", "pivoted")
_STRATEGY = checks.one_of(*STRATEGIES, *MATMULS) | checks.null()
_ARGUMENTS = {"tokens": checks.integer(1), "strategy": _STRATEGY}


@dataclasses.dataclass(frozen=True)
class Machine:
    """Roofline constants. Only their ratios matter for the choice.

    Attributes:
      flops: floating-point operations per second of a large matmul.
      bandwidth: bytes per second read or written by a fused operation.
      transpose_bandwidth: bytes per second of a transpose in memory, each counted once.
      overhead: seconds for each operation, however small.
      cache: bytes above which a transposed intermediate costs `spill` times as much.
      spill: that factor.
      lanes: entries to which the two axes of products and the minor one of all arrays are padded.
      itemsize: bytes that a number counts, whatever its dtype; None: those of its dtype.
    """

    flops: float
    bandwidth: float
    transpose_bandwidth: float
    overhead: float
    cache: float = math.inf
    spill: float = 1.0
    lanes: int = 1
    itemsize: int | None = None


# Part of the peak that products reach, seconds of the least operation, bandwidth of the memory over
# that of transposes. TPUs: fitted to what the compiler estimates for a 768 x 3072 matrix: dense at
# 4,096 tokens, copies of a few kilobytes (about 2,100 cycles on v5e), the matrix rebuilt
# (`tools.benchmarks.tpu`). GPUs: what libraries reach, a launch, one read and
# one write.
_FITTED = {
    "v5e": (0.88, 1.4e-6, 4),
    "v6e": (0.55, 4e-7, 2),
    "tpu": (0.9, 1.4e-6, 4),
    "gpu": (0.9, 4e-6, 2),
}


def _of_chip(name: str, chip: devices.Chip) -> Machine:
    """Constants from a data sheet."""
    reached, overhead, slower = _FITTED.get(name, _FITTED[chip.platform])
    bandwidth, lanes = chip.hbm_bandwidth, 128 if chip.platform == "tpu" else 1
    return Machine(reached * chip.flops, bandwidth, bandwidth / slower, overhead, lanes=lanes)


# CPU: fitted to two cores of a server processor, float32, in which XLA computes 16 bits there, too.
# "gpu" and "tpu", for parts without a data sheet here: those of current parts.
MACHINES = {
    "cpu": Machine(160e9, 40e9, 4e9, overhead=4e-6, cache=4e6, spill=3.0, itemsize=4),
    "gpu": Machine(60e12, 3e12, 1.5e12, overhead=4e-6, itemsize=4),
    "tpu": Machine(60e12, 1e12, 0.4e12, overhead=2e-6, lanes=128, itemsize=4),
    **{name: _of_chip(name, chip) for name, chip in devices.CHIPS.items()},
}


@dataclasses.dataclass(frozen=True)
class Cost:
    """Predicted cost of one strategy for all tokens.

    Attributes:
      strategy: its name.
      variant: cut and direction for the strategies that have several, else ().
      flops: floating-point operations (2 for a multiply-add).
      bytes: bytes read and written.
      transposed: bytes that are transposed in memory.
      operations: number of operations.
      saved: bytes kept for the backward pass; 0 in inference.
      seconds: predicted time on the machine.
    """

    strategy: str
    variant: tuple
    flops: int
    bytes: int
    transposed: int
    operations: int
    saved: int
    seconds: float


@dataclasses.dataclass(frozen=True)
class Plan:
    """The strategy chosen for a shape and a number of tokens, with the costs it was chosen by.

    Hashable and static under `jax.jit`; `str(plan)` is a table.
    """

    shape: MPOShape
    tokens: int
    training: bool
    prepared: bool
    chosen: Cost
    costs: tuple[Cost, ...]

    @property
    def strategy(self) -> str:
        """Name of the chosen strategy."""
        return self.chosen.strategy

    def __str__(self) -> str:
        kind = "training" if self.training else "prepared" if self.prepared else "inference"
        return cost_table(self, f"{self.tokens} tokens, {kind}")


def cost_table(plan, note: str, experts: str = "") -> str:
    """The costs of a plan as text, cheapest first; the chosen strategy has an asterisk."""
    shape = plan.shape
    dense = 2 * plan.tokens * shape.padded_in_features * shape.padded_out_features
    dense *= 3 if plan.training else 1
    lines = [
        f"{experts}{shape.in_features} x {shape.out_features}, bonds {shape.bond_dims}, {note}",
        f"  {'strategy':<21}{'MFLOP':>12}{'x dense':>9}{'MB':>10}{'saved MB':>10}{'est. us':>11}",
    ]
    for cost in sorted(plan.costs, key=lambda c: c.seconds):
        mark = "*" if cost == plan.chosen else " "
        lines.append(
            f"{mark} {cost.strategy:<21}{cost.flops / 1e6:>12.2f}{cost.flops / dense:>9.3g}"
            f"{cost.bytes / 1e6:>10.2f}{cost.saved / 1e6:>10.2f}{cost.seconds * 1e6:>11.1f}"
        )
    return "\n".join(lines)


def plan(
    shape: MPOShape,
    *,
    tokens: int,
    training: bool = True,
    prepared: bool = False,
    strategy: str | None = None,
    machine: Machine | str | None = None,
    dtype: str = "float32",
    core_dtype: str = "float32",
) -> Plan:
    """Chooses how to compute x @ W for W in MPO form; a pure function of static values.

    Args:
      shape: factor lists and bonds.
      tokens: rows of x that share one call, the product of its leading axes.
      training: count forward and backward (gradients of x and of all cores).
      prepared: merging is paid beforehand by `prepare` and not counted; excludes `training`.
      strategy: use this one whatever it costs.
      machine: roofline constants, or the name of a preset; default: that of the devices in use.
      dtype, core_dtype: of activations, in which products run, and of cores, in which these merge.

    Raises:
      ValueError: unknown strategy or machine, tokens below 1, or training with prepared.

    Example:
      >>> from mpojax import mpo
      >>> shape = mpo.MPOShape.published(768, 3072).with_bonds(64)
      >>> mpo.plan(shape, tokens=4096, machine="cpu").strategy
      'rebuild'
      >>> mpo.plan(shape, tokens=1, training=False, machine="cpu").strategy
      'three_groups'
    """
    checks.check({"tokens": tokens, "strategy": strategy}, _ARGUMENTS)
    if training and prepared:
        raise ValueError("a prepared plan is for inference: pass training=False.")
    sizes = (jnp.dtype(dtype).itemsize, jnp.dtype(core_dtype).itemsize)
    return _plan(shape, tokens, training, prepared, strategy, machine_of(machine), sizes)


def machine_of(machine: Machine | str | None) -> Machine:
    """Constants by the name of a preset; those of `mpojax.devices.target` for None.

    Raises:
      ValueError: an unknown name.
    """
    machine = machine or devices.target()
    if isinstance(machine, Machine):
        return machine
    checks.check_value("machine", machine, checks.one_of(*MACHINES))
    return MACHINES[machine]


@functools.lru_cache(maxsize=4096)
def _plan(shape, tokens, training, prepared, strategy, machine, sizes):
    costs = []
    for name in _strategies(shape):
        variants = [
            _cost(shape, tokens, training, prepared, name, v, Ledger(machine, *sizes))
            for v in _variants(name, shape)
        ]
        if variants:
            costs.append(min(variants, key=lambda cost: cost.seconds))
    candidates = [cost for cost in costs if strategy in (None, cost.strategy)]
    if not candidates:
        names = ", ".join(cost.strategy for cost in costs)
        raise ValueError(f"strategy={strategy!r} is not for this chain; for it there are {names}.")
    chosen = min(candidates, key=lambda cost: cost.seconds)
    return Plan(shape, tokens, training, prepared, chosen, tuple(costs))


def _strategies(shape: MPOShape) -> tuple[str, ...]:
    """Those of a shape; of equal cost the first is taken."""
    if shape.pivoted:
        return "pivoted", "rebuild"
    return ("low_rank", *STRATEGIES) if shape.is_low_rank and not shape.is_padded else STRATEGIES


def _variants(strategy, shape):
    """(cut, left to right) for two groups, (None, left to right) for three, () for the others."""
    if strategy == "two_groups":
        # The central core goes with the right group, or with the left one.
        cuts = {shape.central, shape.central + 1} & set(range(1, shape.num_cores))
        return [(cut, direction) for cut in sorted(cuts) for direction in (True, False)]
    if strategy == "three_groups":
        return [(None, True), (None, False)]
    return [()]


class Ledger:
    """Adds up operations: FLOPs, bytes and seconds on a machine.

    Args:
      machine: its constants.
      of_x, of_cores: bytes of a number of activations, and of one of cores.
    """

    def __init__(self, machine: Machine, of_x: int = 4, of_cores: int = 4):
        self.machine, self.seconds = machine, 0.0
        self.saved_size = of_x
        self._sizes = (machine.itemsize or of_x, machine.itemsize or of_cores)
        self.flops = self.bytes = self.transposed = self.operations = 0

    def matmul(self, rows, inner, columns, times=1, cores=False):
        lanes, size = self.machine.lanes, self._sizes[cores]
        wide_inner, wide_columns = (-(-n // lanes) * lanes for n in (inner, columns))
        moved = size * (rows * wide_inner + inner * wide_columns + rows * wide_columns)
        # Narrow products leave vector units idle; of lanes, whole ones are paid for.
        idle = 1.0 if lanes > 1 else min(1.0, min(rows, columns, inner) / _NARROW)
        work = 2 * rows * wide_inner * wide_columns
        # roofline: bound by arithmetic or by memory, whichever takes longer
        slower = max(work / (self.machine.flops * idle), moved / self.machine.bandwidth)
        self.seconds += times * (slower + self.machine.overhead)
        # Reported without the padding to lanes, which only costs time.
        self.flops += times * 2 * rows * inner * columns
        self.bytes += times * moved
        self.operations += times

    def transpose(self, size, times=1, intermediate=False, cores=False, minor=None):
        """`size` numbers; `minor`: entries of their widest axis, which compilers make the minor."""
        machine, lanes = self.machine, self.machine.lanes
        minor = minor or lanes
        moved = self._sizes[cores] * (size // minor) * (-(-minor // lanes) * lanes)
        spill = machine.spill if intermediate and moved > machine.cache else 1.0
        self.transposed += times * moved
        # read and written
        self.bytes += times * 2 * moved
        self.operations += times
        # Compilers for TPUs let a product read its operand in any order: no operation of its own.
        overhead = 0.0 if intermediate and lanes > 1 else machine.overhead
        self.seconds += times * (moved * spill / machine.transpose_bandwidth + overhead)


_NARROW = 8


def _cost(shape, tokens, training, prepared, strategy, variant, ledger):
    saved = tokens * shape.in_features
    if strategy == "rebuild":
        _rebuild_cost(ledger, shape, tokens, training, prepared)
    elif strategy in MATMULS:
        _matmuls_cost(ledger, shape, tokens, training)
        saved += tokens * shape.bonds[0]
    else:
        _contraction_cost(ledger, shape, tokens, training, prepared, strategy, variant)
    return Cost(
        strategy,
        variant,
        ledger.flops,
        ledger.bytes,
        ledger.transposed,
        ledger.operations,
        ledger.saved_size * saved if training else 0,
        ledger.seconds,
    )


def _rebuild_cost(ledger, shape, tokens, training, prepared):
    rows, columns = shape.padded_in_features, shape.padded_out_features
    # y = x W; in training dx = dy W^T and dW = x^T dy, too
    ledger.matmul(tokens, rows, columns, times=3 if training else 1)
    if prepared:
        return
    groups = contract.group_shapes(shape)
    if ledger.machine.lanes == 1 or len(groups) < 3:
        _merge_cost(ledger, contract.rebuild_steps(shape), training)
        return
    # As `contract.to_matrix` on TPUs: C R with wide minor columns, then L times it.
    _merge_cost(ledger, contract.side_merge_steps(shape), training)
    (_, i, j, p), (_, k, m, q), (_, a, b, _) = groups
    # As in `_merge_cost`: rebuilt twice, and pulled back by two products and one transpose.
    products, moves = (4, 3) if training else (1, 1)
    ledger.matmul(p * k * m, q, a * b, times=products, cores=True)
    ledger.transpose(p * k * a * m * b, times=moves, cores=True, minor=m * b)
    ledger.matmul(i * j, p, k * a * m * b, times=products, cores=True)
    ledger.transpose(rows * columns, times=moves, minor=m * b)  # written for the product


def _matmuls_cost(ledger, shape, tokens, training):
    """u = x A and u B; of a pivoted chain the columns are put in order."""
    for p, i, j, q in shape.core_shapes:
        # (T, in) @ (in, r), then (T, r) @ (r, out)
        ledger.matmul(tokens, p * i, j * q, times=3 if training else 1)
    if shape.pivoted:
        ledger.transpose(tokens * shape.out_features, times=2 if training else 1)


def _merge_cost(ledger, steps, training):
    """Merging pairs of cores; in training twice (none is kept), and two products to pull back."""
    rebuilds = 2 if training else 1
    for (p, i, j, q), (_, k, m, r) in steps:
        times = rebuilds + (2 if training else 0), rebuilds + (1 if training else 0)
        ledger.matmul(p * i * j, q, k * m * r, times=times[0], cores=True)
        ledger.transpose(
            p * i * j * k * m * r, times=times[1], cores=True, minor=max(p, i * k, j * m, r)
        )


def _contraction_cost(ledger, shape, tokens, training, prepared, strategy, variant):
    if strategy == "two_groups":
        cut, left_to_right = variant
        runs = shape.core_shapes[:cut], shape.core_shapes[cut:]
        groups = [contract.merged_shape(run) for run in runs]
        if not prepared:
            _merge_cost(ledger, contract.side_merge_steps(shape, cut), training)
            for group in groups:
                ledger.transpose(math.prod(group), cores=True, minor=max(group))
    elif strategy == "three_groups":
        left_to_right = variant[1]
        groups = contract.group_shapes(shape)
        if not prepared:
            _merge_cost(ledger, contract.side_merge_steps(shape), training)
    else:
        left_to_right = strategy == "chain_left_to_right"
        groups = shape.core_shapes
    done, todo = 1, shape.padded_in_features
    for p, i, j, q in groups if left_to_right else reversed(groups):
        before, after = (p, q) if left_to_right else (q, p)
        todo //= i
        # (T x columns done x rows to do, bond x i) @ (bond x i, j x bond)
        # Training: forward, once more in the backward pass, and a product for each operand.
        ledger.matmul(tokens * done * todo, before * i, j * after, times=4 if training else 1)
        # One token through two groups needs no transpose; otherwise every step moves its state,
        # and in a longer chain what it starts from as well.
        if strategy != "two_groups" or tokens > 1:
            times, minor = 3 if training else 1, max(tokens, done, todo)
            state = tokens * done * todo * j * after
            ledger.transpose(state, times=times, intermediate=True, minor=minor)
            if strategy != "two_groups" and before > 1:
                state = tokens * done * todo * i * before
                ledger.transpose(state, times=times, intermediate=True, minor=minor)
        done *= j
    if ledger.machine.lanes > 1 and strategy != "two_groups":
        # Few tokens: states between cores are put in order by operations of their own, once.
        ledger.seconds += (len(groups) - 1) * ledger.machine.overhead
