"""Cost of a run without running it: nothing is allocated, the step is only compiled."""

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from mpojax import devices
from mpojax.training import sharding as sharding_lib
from mpojax.training import sharding_rules
from mpojax.training import state as state_lib
from mpojax.training import step as step_lib
from mpojax.training.aot import estimate as estimate_lib


@dataclasses.dataclass(frozen=True)
class Report:
    """Cost of one step.

    Attributes:
      mesh: {axis: devices}.
      batch: {name: shape} of the global batch.
      parameters: {role: count}; shared ones count once.
      trained: number of trained parameters.
      bytes_per_device: "parameters", "optimizer", "batch", "temporaries" (gradients and
        activations, by the compiler's plan; None where the backend does not tell), and "peak",
        their sum.
      program_flops: matrix products of the step for the whole batch, with recomputation and the
        rebuilding of matrices (once, though each part of the batch repeats it).
      model_flops: those of the dense model, without either; None where not given.
      compiled_flops: XLA's own count for one device; loops over layers count once.
      compile_seconds: tracing and compilation.
      table: a row for each parameter.
      estimate: time and memory on the chips of the mesh; None for chips without a data sheet.
    """

    mesh: dict[str, int]
    batch: dict[str, tuple[int, ...]]
    parameters: dict[str, int]
    trained: int
    bytes_per_device: dict[str, int | None]
    program_flops: int
    model_flops: int | None
    compiled_flops: float | None
    compile_seconds: float
    table: list[sharding_rules.Placement]
    estimate: estimate_lib.Estimate | None = None

    @property
    def tokens(self) -> int:
        """Tokens of a batch, padding included; rows where it has no texts."""
        texts = [shape for name, shape in self.batch.items() if name.endswith("input_ids")]
        shapes = texts or [shape[:1] for shape in list(self.batch.values())[:1]]
        return sum(map(math.prod, shapes))

    @property
    def total(self) -> int:
        return sum(self.parameters.values())

    def summary(self) -> dict[str, Any]:
        """Everything but the table, JSON-able."""
        names = [f.name for f in dataclasses.fields(self) if f.name not in ("table", "estimate")]
        found = {"total": self.total} | {name: getattr(self, name) for name in names}
        if self.estimate is not None:
            found["estimate"] = self.estimate.summary(self.model_flops, self.tokens)
        return found

    def text(self) -> str:
        """Human-readable report."""
        axes = " x ".join(f"{axis}={size}" for axis, size in self.mesh.items() if size > 1)
        rows = [("parameters", f"{self.total:,}", f"{self.trained:,} trained")]
        rows += [(f"  {role}", f"{n:,}", "") for role, n in self.parameters.items()]
        rows += [("memory of one device", "", "")]
        rows += [(f"  {name}", _mebibytes(n), "") for name, n in self.bytes_per_device.items()]
        rows += [("FLOPs of one step, whole batch", "", "")]
        rows += [("  program", _teraflops(self.program_flops), "matrix products, all that are run")]
        if self.model_flops is not None:
            # Model FLOPs over those that run: remat and rebuilding of matrices are the difference.
            share = self.model_flops / max(1, self.program_flops)
            note = f"dense model, forward and backward once: {share:.0%} of the program's"
            rows += [("  model", _teraflops(self.model_flops), note)]
        if self.compiled_flops is not None:
            note = "one device, by the compiler, loops over layers counted once"
            rows += [("  compiler", _teraflops(self.compiled_flops), note)]
        rows += [("compilation", f"{self.compile_seconds:.1f} s", "")]
        if self.estimate is not None:
            rows += [("", "", ""), *self.estimate.rows(self.model_flops, self.tokens)]
        batch = ", ".join(f"{name} {'x'.join(map(str, s))}" for name, s in self.batch.items())
        return "\n".join(
            [
                f"mesh: {axes or 'one device'}",
                f"batch: {batch}",
                "",
                sharding_rules.aligned(rows, right=(1,)),
                "",
                sharding_rules.table_text(self.table),
                "",
            ]
        )


def abstract_state(
    model: nnx.Module, trainable: state_lib.Filter, optimizer: Any, *, seed: int = 0
) -> state_lib.TrainState:
    """`TrainState.create` with shapes in the place of arrays; `model` may be abstract itself."""
    return jax.eval_shape(
        lambda m: state_lib.TrainState.create(m, trainable, optimizer, seed=seed), model
    )


def dry_run(
    state: state_lib.TrainState,
    loss_fn: step_lib.LossFunction,
    batch: Mapping[str, Any],
    *,
    optimizer: Any,
    mesh: Mesh | None = None,
    rules: sharding_lib.Rules = sharding_lib.REPLICATED,
    grad_accum_steps: int = 1,
    precompute: Callable[[nnx.Module], Any] | None = None,
    model_flops: int | None = None,
) -> Report:
    """Compiles the step that `fit` with the same arguments would run, and reports on it.

    Args:
      state: see `abstract_state`; a state with arrays will do, too.
      loss_fn, optimizer, mesh, rules, grad_accum_steps, precompute: see `fit`.
      batch: {name: array or shape struct} of the global batch.
      model_flops: see `mpojax.models.model_flops`.

    Raises:
      ValueError: batch and mesh, or rules and model, do not fit.
      DoesNotFitError: the step needs more memory than a chip has.
    """
    mesh = mesh or sharding_lib.make_mesh()
    start = time.perf_counter()
    shardings = sharding_lib.state_shardings(state, mesh, rules)
    placed = sharding_lib.abstract(state, shardings)
    rows = {leaf.shape[0] for leaf in batch.values()}
    if len(rows) != 1:
        raise ValueError(f"the arrays of a batch need equally many rows; got {sorted(rows)}")
    sharding_lib.check_batch(rows.pop(), mesh)
    # Shapes with shardings: nothing is allocated, whatever the size.
    split = NamedSharding(mesh, sharding_lib.BATCH)
    batch = {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=split)
        for name, leaf in batch.items()
    }
    step = step_lib.TrainStep(
        loss_fn, optimizer, grad_accum_steps=grad_accum_steps, precompute=precompute
    )
    with jax.set_mesh(mesh):
        traced = step.trace(placed, batch)
        compiled = _compiled(traced)
        chip = devices.target()
    parameters = state_lib.flatten(state.trainable) | state_lib.flatten(state.frozen)
    return Report(
        mesh=dict(mesh.shape),
        batch={name: tuple(leaf.shape) for name, leaf in batch.items()},
        parameters=_sizes_by_role(state_lib.roles(state.model()), parameters),
        trained=sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state.trainable)),
        bytes_per_device=_memory(placed, batch, compiled),
        program_flops=program_flops(traced.jaxpr),
        model_flops=model_flops,
        compiled_flops=_compiled_flops(compiled),
        compile_seconds=time.perf_counter() - start,
        table=sharding_rules.sharding_table(state, mesh, rules),
        estimate=(
            estimate_lib.of_compiled(compiled, mesh.size, chip) if chip in devices.CHIPS else None
        ),
    )


def _compiled(traced: jax.stages.Traced) -> jax.stages.Compiled:
    try:
        return traced.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if problem := estimate_lib.as_does_not_fit(error):
            raise problem from error
        raise


def _sizes_by_role(roles: Mapping[str, str], parameters: Mapping[str, Any]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for path, leaf in parameters.items():
        sizes[roles[path]] = sizes.get(roles[path], 0) + math.prod(leaf.shape)
    return dict(sorted(sizes.items(), key=lambda item: -item[1]))


def _memory(state: state_lib.TrainState, batch: Mapping, compiled) -> dict[str, int | None]:
    def size(tree) -> int:
        return sum(
            # Of one device: what is replicated counts whole, what is sharded by its part.
            math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
            for leaf in jax.tree.leaves(tree)
        )

    parts: dict[str, int | None] = {
        "parameters": size((state.trainable, state.frozen)),
        "optimizer": size(state.optimizer),
        "batch": size(batch),
    }
    analysis = compiled.memory_analysis()
    parts["temporaries"] = None if analysis is None else int(analysis.temp_size_in_bytes)
    known = parts.values()
    return parts | {"peak": None if None in known else sum(known)}


def _compiled_flops(compiled) -> float | None:
    analysis = compiled.cost_analysis()
    analysis = analysis[0] if isinstance(analysis, list) and analysis else analysis
    return float(analysis["flops"]) if analysis and "flops" in analysis else None


def _mebibytes(count: int | None) -> str:
    return "unknown" if count is None else f"{count / 2**20:,.1f} MiB"


def _teraflops(count: float) -> str:
    return f"{count / 1e12:,.4g} T"


def program_flops(jaxpr: Any) -> int:
    """FLOPs of all matrix products of a traced program, 2 for a multiply-add.

    The program as written: what several devices repeat, such as the rebuilding of a matrix from its
    cores for each part of the batch, counts once. Loops count as often as they run, which XLA's own
    cost analysis does not do. A `while` loop, whose length is not known, counts once; of a `cond`
    the costliest branch counts. Elementwise work is left out.

    Args:
      jaxpr: such as `jax.make_jaxpr(f)(x)`, or `jax.jit(f).trace(x).jaxpr`.
    """
    inner = getattr(jaxpr, "jaxpr", jaxpr)
    return sum(_equation(equation) for equation in inner.eqns)


def _equation(equation) -> int:
    name, parameters = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = parameters["dimension_numbers"]
        sizes = equation.invars[0].aval.shape
        depth = math.prod(sizes[axis] for axis in contracted)
        return 2 * depth * math.prod(equation.outvars[0].aval.shape)
    if name == "ragged_dot_general":  # each row with the matrix of one group
        numbers = parameters["ragged_dot_dimension_numbers"]
        (_, contracted), (_, batch) = numbers.dot_dimension_numbers
        left, right = (variable.aval.shape for variable in equation.invars[:2])
        used = {*contracted, *batch, *numbers.rhs_group_dimensions}
        # Rows and what is summed over are the axes of `left`; of `right` only its columns are left.
        return 2 * math.prod(left) * math.prod(n for k, n in enumerate(right) if k not in used)
    parts = [part for value in parameters.values() for part in _programs(value)]
    if name == "scan":
        return parameters["length"] * sum(map(program_flops, parts))
    if name == "pallas_call":
        if (estimate := parameters.get("cost_estimate")) is not None:
            return estimate.flops  # its grid may not be known when tracing
        # a program for each cell of its grid
        return math.prod(parameters["grid_mapping"].grid) * sum(map(program_flops, parts))
    if name == "cond":
        return max(map(program_flops, parts))
    return sum(map(program_flops, parts))


def _programs(value: Any):
    if isinstance(value, list | tuple):
        for entry in value:
            yield from _programs(entry)
    elif hasattr(value, "eqns") or hasattr(getattr(value, "jaxpr", None), "eqns"):
        yield value
