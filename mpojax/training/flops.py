"""Floating point operations of a traced program."""

import math
from typing import Any


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
    parts = [part for value in parameters.values() for part in _programs(value)]
    if name == "scan":
        return parameters["length"] * sum(map(program_flops, parts))
    if name == "cond":
        return max(map(program_flops, parts))
    return sum(map(program_flops, parts))


def _programs(value: Any):
    if isinstance(value, list | tuple):
        for entry in value:
            yield from _programs(entry)
    elif hasattr(value, "eqns") or hasattr(getattr(value, "jaxpr", None), "eqns"):
        yield value
