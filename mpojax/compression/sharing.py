"""First cores that neighbouring layers share: W_l = A B_l, with A stored once for each group.

Groups are chosen by error. At a price of a parameter, the one at which matrices by themselves meet
the budget, a group of layers costs

    sum over roles  min over ranks  loss(rank) + price * parameters(rank)

and dynamic programming over the depth finds the division into groups that costs least, groups of
one among them. What a group shares are the central cores of two-core chains, stored and run as
those of MPOBERT (`layer_groups` and `shared_roles` of a model's settings).
"""

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from mpojax import mpo
from mpojax.compression import layerwise, low_rank
from mpojax.compression.layerwise import Approximations
from mpojax.compression.low_rank import METHODS, Losses, Method, Ranks, Task
from mpojax.compression.matrices import side_by_side, stored_type
from mpojax.compression.report import MatrixRow

# Layers of a group, at most.
MOST = 4
# Pairs that are looked at before all are: of the depth.
_PROBED = (1 / 3, 2 / 3)
_TURNS = 2


def compress(task: Task) -> tuple[Approximations, list[MatrixRow]]:
    """As `low_rank.approximations`, of method "shared".

    Raises:
      ValueError: a model whose layers cannot share.
    """
    if reason := refusal(task):
        raise ValueError(f"method='shared' has layers share cores, but {reason}; take 'pivoted'.")
    method = METHODS["shared"]
    task.steps = 3 * len(task.paths)
    search = Search(task, method, low_rank.predicted_losses(task, method))
    found = search.approximations()
    return found, search.rows(found)


def refusal(task: Task) -> str | None:
    """Why layers cannot share here; None where they can."""
    if reason := layerwise.refusal(task.matrices.model):
        return reason
    if task.share_bonds:
        return "share_bonds=True has all layers of a role keep one rank"
    if any(path.startswith("layers/") for path in task.matrices.shapes):
        return "some matrices of the layers are in MPO form already"
    return "no layers have the same matrices" if len(_layers(task)) < 2 else None


def num_probes(task: Task) -> int:
    """Steps of the progress that `Search.promising` takes."""
    by_layer = _layers(task)
    return sum(len(by_layer[pair[0]]) for pair in probed(list(by_layer)))


class Search:
    """Costs of groups of layers at one price of a parameter, each found once."""

    def __init__(self, task: Task, method: Method, losses: Losses):
        """`losses` are of every matrix by itself, see `low_rank.predicted_losses`."""
        self.task, self.method, self.losses = task, method, losses
        by_layer = _layers(task)
        self.layers = list(by_layer)
        self.names = by_layer[self.layers[0]]
        self.curves = {(path,): curve for path, curve in losses.items()}
        entries = [self._entry([layer], name) for layer in self.layers for name in self.names]
        self.price = mpo.price_of_parameters(*zip(*entries, strict=True), task.budget)
        self._costs: dict[tuple[int, ...], float] = {}

    def promising(self) -> bool:
        """True if one of a few pairs of layers gains by sharing."""
        pairs = probed(self.layers)
        self._find(self._unknown(pairs))
        return any(map(self.gains, pairs))

    def approximations(self) -> Approximations:
        """Chains; neighbouring layers share first cores where that is predicted to lose less."""
        task, method, groups = self.task, self.method, self.groups()
        ranks, predicted = self.allocated(groups)
        by_themselves = [[layer] for layer in self.layers]
        alone, predicted_alone = self.allocated(by_themselves)
        if predicted_alone <= predicted:
            groups, ranks = by_themselves, alone
        found = Approximations({}, {}, [], tuple(map(len, groups)))
        found.groups = found.groups if max(found.groups) > 1 else None
        factorised = task.factorised(method)
        for group, name in itertools.product(groups, self.names):
            paths = self._paths(group, name)
            rank = ranks[paths[0]]
            if rank is not None:
                cores = _cores(task, method, factorised, paths, rank)
                kind = stored_type(task.matrices.weights(paths[0]))
                found.chains |= {
                    path: layerwise.chain(each, method.pivoted and len(group) == 1, kind)
                    for path, each in zip(paths, cores, strict=True)
                }
            for path in paths:
                task.advance(path)
        return found

    def rows(self, found: Approximations) -> list[MatrixRow]:
        """A row of the report for each matrix of `approximations`."""
        rows = low_rank.rows_of(self.task, self.method, found, self.losses)
        if found.groups is None:
            return rows
        ends = itertools.accumulate(found.groups)
        groups = [range(end - size, end) for end, size in zip(ends, found.groups, strict=True)]
        return [_own(row, groups, self.curves) for row in rows]

    def _paths(self, group: Sequence[int], name: str) -> tuple[str, ...]:
        return tuple(_path(layer, name) for layer in group)

    def _entry(self, group: Sequence[int], name: str) -> tuple[np.ndarray, tuple[int, int], bool]:
        """(losses by rank, size, pivoted) of what stands for one role of a group."""
        paths = self._paths(group, name)
        rows, columns = self.task.matrices.sizes[paths[0]]
        # A [B_1, ..., B_n] is low rank of an (in, n out) matrix: r (in + n out) parameters.
        return self.curves[paths], (rows, columns * len(group)), len(group) == 1

    def _unknown(self, groups: Iterable[Sequence[int]]) -> list[tuple[str, ...]]:
        """Paths of each role of these groups whose losses are not known."""
        every = itertools.starmap(self._paths, itertools.product(groups, self.names))
        return [paths for paths in every if paths not in self.curves]

    def _find(self, unknown: Sequence[tuple[str, ...]]) -> None:
        """Losses by rank of what these paths would share; a step of the progress each."""

        def curve(paths: tuple[str, ...]) -> np.ndarray:
            # A bond of the chains is at most what a matrix alone could have.
            most = min(self.task.matrices.sizes[paths[0]])
            return _shared(self.task, self.method, paths).squared_errors[: most + 1] / 2

        for paths, found in zip(unknown, side_by_side(curve, unknown), strict=True):
            self.curves[paths] = found
            self.task.advance(f"{paths[0]}, shared by {len(paths)} layers")

    def cost(self, group: Sequence[int]) -> float:
        """Predicted loss and price of the parameters of a group, at its best ranks."""
        if (key := tuple(group)) not in self._costs:
            entries = (self._entry(group, name) for name in self.names)
            self._costs[key] = sum(mpo.priced(*entry, self.price) for entry in entries)
        return self._costs[key]

    def gains(self, group: Sequence[int]) -> bool:
        """True if the layers cost less together than by themselves."""
        return self.cost(group) < sum(self.cost([layer]) for layer in group)

    def groups(self) -> list[list[int]]:
        """The division that costs least.

        A group is tried only if it gains without its first and without its last layer.
        """
        depth, costs = len(self.layers), {}
        for size in range(1, MOST + 1):
            tried = {
                first: self.layers[first : first + size]
                for first in range(depth - size + 1)
                if size < 3 or {(first, size - 1), (first + 1, size - 1)} <= costs.keys()
            }
            unknown = self._unknown(tried.values())
            self.task.steps += len(unknown)  # known only now
            self._find(unknown)
            for first, group in tried.items():
                if size == 1 or self.gains(group):
                    costs[first, size] = self.cost(group)
        # best[end] = min over sizes of best[end - size] + cost of the last `size` layers as a group
        best: list[tuple[float, list]] = [(0.0, [])]
        for end in range(1, depth + 1):
            found = [
                (best[end - size][0] + costs[end - size, size], size)
                for size in range(1, min(MOST, end) + 1)
                if (end - size, size) in costs
            ]
            least, size = min(found)
            best.append((least, [*best[end - size][1], self.layers[end - size : end]]))
        return best[-1][1]

    def allocated(self, groups: Sequence[Sequence[int]]) -> tuple[Ranks, float]:
        """(rank by path, predicted loss) of a division under the budget."""
        keys = [(group, name) for group in groups for name in self.names]
        curves, sizes, pivoted = zip(*(self._entry(*key) for key in keys), strict=True)
        ranks = mpo.allocate_ranks(curves, sizes, self.task.budget, pivoted=pivoted)
        pairs = list(zip(keys, curves, ranks, strict=True))
        by_path = {p: rank for key, _, rank in pairs for p in self._paths(*key)}
        return by_path, sum(float(c[r]) for _, c, r in pairs if r is not None)


def _layers(task: Task) -> dict[int, list[str]]:
    """{layer: names of its matrices} where all layers have the same ones, else of none."""
    found: dict[int, list[str]] = {}
    if not all(path.startswith("layers/") for path in task.paths):
        return found
    for path in task.paths:
        _, layer, name = path.split("/", 2)
        found.setdefault(int(layer), []).append(name)
    depth = task.matrices.model.config.num_layers
    same = all(names == found.get(0) for names in found.values())
    return found if same and list(found) == list(range(depth)) else {}


def probed(layers: Sequence[int]) -> list[Sequence[int]]:
    """Pairs of neighbours that are looked at before all are."""
    firsts = sorted({int(share * (len(layers) - 1)) for share in _PROBED})
    return [layers[first : first + 2] for first in firsts]


def _path(layer: int, name: str) -> str:
    return f"layers/{layer}/{name}"


def _shared(task: Task, method: Method, paths: Sequence[str]) -> mpo.SharedLowRank:
    inputs = task.inputs(method.inputs)
    curvatures = low_rank.Curvatures(task.calibration)
    weights = [task.matrices.weights(path) for path in paths]
    return mpo.SharedLowRank(weights, [inputs[p] for p in paths], [curvatures[p] for p in paths])


def _cores(task: Task, method: Method, factorised, paths: Sequence[str], rank: int) -> list[tuple]:
    """(A, B_l) of each path, A the same array."""
    if len(paths) == 1:
        return [factorised(paths[0]).cores(rank)]
    first, seconds = _shared(task, method, paths).cores(rank, _TURNS)
    return [(first, second) for second in seconds]


def _own(row: MatrixRow, groups: Sequence[Sequence[int]], curves: Mapping) -> MatrixRow:
    """A row that counts a shared core once, in its first layer."""
    _, layer, name = row.path.split("/", 2)
    group = next(group for group in groups if int(layer) in group)
    if len(group) == 1:
        return row
    # B_l (r, out) in every layer, A (in, r) in the first one
    own = row.bonds[0] * row.out_features
    own += row.bonds[0] * row.in_features * (int(layer) == group[0])
    curve = curves[tuple(_path(each, name) for each in group)]
    label = f"{row.method}, first core shared by layers {group[0]} to {group[-1]}"
    loss = float(curve[row.bonds[0]]) / len(group)
    return dataclasses.replace(row, mpo_parameters=own, method=label, predicted_loss=loss)
