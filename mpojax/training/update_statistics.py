"""Relative updates of each layer: the norm of a step's change over that of the parameters.

For studies of stability, such as a very deep encoder under several initialisations. A model keeps
its layers in `stacks/<k>/...` of one tower, or of several (`towers/encoder/...`); they are named
`layer_03`, or `decoder_layer_03`.
"""

import pathlib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from mpojax import checks, files
from mpojax.training import hooks, metrics
from mpojax.training import state as state_lib

if TYPE_CHECKING:
    from mpojax.training.loop import Loop

NAME = "update_statistics.jsonl"


class UpdateStatistics(hooks.Hook):
    """Measures step `every`, 2 `every`, ...: the parameters before it are kept for one step.

    Logs, for each group of trained parameters, `update_ratio/<group>` = |change| / |before| and
    `parameter_norm/<group>` = |before|, with Euclidean norms over all elements of the group. Where
    the norm is zero there is no ratio. Groups:

    * `layer_03`: what layer 3 owns, that is, each slice of parameters with as many slices as their
      stack has layers;
    * `block_00`: what the layers of a block share (fewer slices);
    * `role_central`, ...: all parameters of a role.

    Where a model has several towers, their names come first: `decoder_layer_03`.

    The run's folder gets the same by layer and role as JSON lines, see `read`.

    Args:
      roles: {parameter path: role}, from `training.roles(model)`.
      every: steps between two measurements.
    """

    order = 50

    def __init__(self, roles: dict[str, str], every: int = 100):
        checks.check_value("every", every, checks.integer(1))
        self.roles, self.every = dict(roles), every
        self._before: Any = None
        self._lines: metrics.JsonLines | None = None
        self._copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))
        self._measure = jax.jit(_squares)

    def begin(self, loop: "Loop") -> None:
        if loop.folder is not None and jax.process_index() == 0:
            self._lines = metrics.JsonLines(loop.folder / NAME, loop.step)
        self._keep(loop)

    def after_step(self, loop: "Loop") -> None:
        if self._before is not None:
            with loop.untimed():
                self._write(loop)
            self._before = None
        self._keep(loop)

    def sync(self) -> None:
        if self._lines is not None:
            self._lines.flush()

    def close(self) -> None:
        self._before = None
        if self._lines is not None:
            self._lines.close()
            self._lines = None

    def _keep(self, loop: "Loop") -> None:
        # The step that comes next is to be measured.
        if (loop.step + 1) % self.every == 0 and loop.step < loop.steps:
            # A copy: the step gives the buffers of its input away.
            self._before = self._copy(loop.state.trainable)

    def _write(self, loop: "Loop") -> None:
        squares = jax.device_get(self._measure(self._before, loop.state.trainable))
        cells = _by_layer_and_role(squares, self.roles)
        totals: dict[str, np.ndarray] = {}
        for (group, role), sums in cells.items():
            names = [f"role_{role}"] if group == "outside" else [group, f"role_{role}"]
            for name in names:
                totals[name] = totals.get(name, 0.0) + sums
        values = {}
        for name in sorted(totals):
            ratio, norm = _ratio_and_norm(totals[name])
            values |= {f"update_ratio/{name}": ratio, f"parameter_norm/{name}": norm}
        loop.log({name: x for name, x in values.items() if np.isfinite(x)}, keep=False)
        if self._lines is not None:
            line: dict[str, Any] = {"step": loop.step}
            for (group, role), sums in cells.items():
                safe = [x if np.isfinite(x) else None for x in _ratio_and_norm(sums)]
                line[f"{group}/{role}"] = safe
            self._lines.write(line)


def read(folder: str | pathlib.Path) -> dict[str, np.ndarray]:
    """Reads what a run has measured, for plots.

    Returns:
      "step": (n,) int64, and for every `<group>/<role>`, such as "layer_03/auxiliary",
      "block_00/central" or "outside/other", (n, 2): ratio and norm; NaN where not finite.
    """
    lines = metrics.read(files.at(folder) / NAME)
    names = dict.fromkeys(name for line in lines for name in line if name != "step")
    unknown = [None, None]
    return {"step": np.array([line["step"] for line in lines], np.int64)} | {
        name: np.array([line.get(name, unknown) for line in lines], np.float64) for name in names
    }


def _squares(before: Any, after: Any) -> dict[str, jax.Array]:
    """{path: (2, slices or 1)}: sums of squares of the change, and of the parameter before."""

    def sums(path, old, new):
        axes = tuple(range(state_lib.layer_axes(path), old.ndim))
        # |new - old|^2 and |old|^2 of each layer; sums of squares add up over arrays.
        pair = [jnp.sum(jnp.square(x.astype(jnp.float32)), axis=axes) for x in (new - old, old)]
        return jnp.stack(pair).reshape(2, -1)

    return state_lib.flatten(state_lib.map_with_path(sums, before, after))


def _by_layer_and_role(squares: dict, roles: dict[str, str]) -> dict[tuple[str, str], np.ndarray]:
    """{(group, role): (2,) sums of squares}; see `UpdateStatistics`."""
    depths: dict[str, int] = {}  # layers of each stack
    for path, sums in squares.items():
        if state_lib.layer_axes(path):
            stack = stack_of(path)
            depths[stack] = max(depths.get(stack, 0), sums.shape[1])
    starts, blocks = firsts(depths), firsts(_block_counts(squares, depths))
    names = prefixes(depths)
    cells: dict[tuple[str, str], np.ndarray] = {}
    for path, sums in squares.items():
        stack = stack_of(path) if state_lib.layer_axes(path) else None
        for index in range(sums.shape[1]):
            if stack is None:
                group = "outside"
            # What a block of layers shares has fewer slices than the stack has layers.
            elif sums.shape[1] == depths[stack]:
                group = f"{names[stack]}layer_{starts[stack] + index:02d}"
            else:
                group = f"{names[stack]}block_{blocks[stack] + index:02d}"
            key = group, roles[path]
            cells[key] = cells.get(key, 0.0) + sums[:, index].astype(np.float64)
    return dict(sorted(cells.items()))


def _block_counts(squares: dict, depths: dict[str, int]) -> dict[str, int]:
    counts = dict.fromkeys(depths, 0)
    for path, sums in squares.items():
        if state_lib.layer_axes(path) and sums.shape[1] < depths[stack_of(path)]:
            counts[stack_of(path)] = sums.shape[1]
    return counts


def _ratio_and_norm(sums: np.ndarray) -> tuple[float, float]:
    change, norm = np.sqrt(sums)
    return float(change / norm) if norm else float("nan"), float(norm)


def stack_of(path: str) -> str:
    """`towers/decoder/stacks/0` of a parameter in it."""
    parts = path.split("/")
    return "/".join(parts[: parts.index("stacks") + 2])


def tower_of(stack: str) -> str:
    """`decoder` of `towers/decoder/stacks/0`."""
    return stack.rpartition("stacks/")[0].rstrip("/").rpartition("/")[2]


def firsts(sizes: Mapping[str, int]) -> dict[str, int]:
    """{stack: number of what lies in the stacks before it, of the same tower}.

    Args:
      sizes: {stack: number of what lies in it}.
    """
    made: dict[str, int] = {}
    done: dict[str, int] = {}
    for stack in sorted(sizes, key=lambda name: int(name.rpartition("/")[2])):
        tower = tower_of(stack)
        made[stack] = done.get(tower, 0)
        done[tower] = made[stack] + sizes[stack]
    return made


def prefixes(stacks: Iterable[str]) -> dict[str, str]:
    """{stack: what its layers' names begin with}: nothing where there is one tower alone."""
    towers = {stack: tower_of(stack) for stack in stacks}
    several = len(set(towers.values())) > 1
    return {stack: f"{tower}_" if several else "" for stack, tower in towers.items()}
