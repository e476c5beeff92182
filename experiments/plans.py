"""What compressing a decoder costs, before it is done: passes, time, memory, files.

From its settings and the headers of its files alone. FLOPs are counted as in
`mpojax.training.dry_run`, 2 for a multiply-add; seconds are FLOPs over rates that are measured on
this machine when the plan is made.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import decoders
from mpojax import compression, models, tables
from mpojax.compression import choosing, compressing, matrices, sharing
from mpojax.mpo.experts import fitting

# Bytes of the process itself: Python, jax, compiled programs.
_PROCESS = 0.6e9
# Of a product x^T x this part is computed, the rest being its mirror image.
_SYMMETRIC = 0.65
# Logits exist for so many bytes at a time.
_LOGITS = 3 * 2**28
# Matrices (widest, widest) in float64 that a thread holds of two layers for a core that they share:
# 9 to 12 were measured for (704, 256) and (256, 704).
_OF_PAIRS = 12
# Steps of conjugate gradients for a first core that experts share, without and with a base; of
# these 560 and 1,000 were run for random experts (tools.benchmarks.mixtures).
_STEPS = 800


@dataclasses.dataclass(frozen=True)
class Rates:
    """Of this machine.

    Attributes:
      single, double: FLOPs a second of float32 and float64 products.
      eigen: seconds of n^-3 for the eigenvalues and vectors of (n, n) in float64. These and
        float64 products as matrices are factorised, several side by side.
    """

    single: float
    double: float
    eigen: float

    @classmethod
    def measured(cls) -> "Rates":
        """About a second."""
        x = jnp.ones((1024, 1024))
        product = jax.jit(jnp.matmul)
        wide, square = np.ones((512, 512)), np.random.default_rng(0).standard_normal((256, 256))
        symmetric = square @ square.T
        return cls(
            2 * 1024**3 / _seconds(lambda: product(x, x).block_until_ready()),
            2 * 512**3 / _seconds_of_one(lambda _: wide @ wide),
            _seconds_of_one(lambda _: np.linalg.eigh(symmetric)) / 256**3,
        )


@matrices.one_blas_thread
def _seconds_of_one(function: Callable) -> float:
    """Of eight calls side by side, for each."""
    return _seconds(lambda: list(matrices.side_by_side(function, range(8)))) / 8


def _seconds(function: Callable) -> float:
    """The least of three calls, after one that compiles."""
    function()
    times = []
    for _ in range(3):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


class Map(NamedTuple):
    """A matrix that is compressed, or a map of all experts of a block.

    Attributes:
      rows, columns: of a matrix.
      number: of matrices.
      used: how many of them a token goes through.
    """

    rows: int
    columns: int
    number: int
    used: int


@dataclasses.dataclass(frozen=True)
class Phase:
    """A part of the work: what it runs, its FLOPs in both precisions, bytes in memory, in files.

    Attributes:
      at_most: whether less of it may turn out to be needed.
    """

    name: str
    passes: str
    single: float
    memory: float
    double: float = 0.0
    eigen: float = 0.0
    disk: float = 0.0
    at_most: bool = False

    def seconds(self, rates: Rates) -> float:
        """At these rates; `eigen` is a sum of n^3."""
        return self.single / rates.single + self.double / rates.double + self.eigen * rates.eigen


class Plan:
    """Costs of the phases for one config; attributes as in the config's terms."""

    def __init__(self, config, stored: models.StoredModel, names, in_memory: bool = False):
        """Reads no weights and no texts.

        Args:
          in_memory: whether the weights are, all the time, as those of a GGUF file.

        Raises:
          ValueError: no budget, or one that cannot be met.
        """
        self.config, self.model, self.stored = config, stored.config, stored
        self.names = list(names or decoders.default(stored))
        self.methods = [compression.METHODS[name] for name in self.names]
        decoders.check(config, stored, self.names)
        sizes = decoders.matched_sizes(config, stored)
        self.maps, self.matched = _maps(stored, sizes), sum(sizes.values())
        self.total = sum(models.count_parameters(stored.abstract).values())
        self.stored_bytes = sum(
            a.dtype.itemsize * math.prod(a.shape) for a in stored.arrays.values()
        )
        self.in_memory = in_memory
        self.process = _PROCESS + in_memory * self.stored_bytes
        self.budgets = decoders.budgets_of(config)
        settings = config.calibration
        self.length = min(settings.length, self.model.max_positions)
        self.tokens = settings.windows * self.length
        self.window = min(config.evaluation.window, self.model.max_positions)

    def phases(self) -> list[Phase]:
        """In their order."""
        found = [self._measured("perplexity, dense", 1.0), self._statistics()]
        for budget in self.budgets:
            size = decoders.size_of(self.config, budget, self.total, self.matched)
            kept = size / self.total
            for name in self.names:
                label = f"{name}, {decoders.shown(budget)}"
                found += [self._compressed(name, label, kept), self._measured(label, kept)]
                if name == "best" and decoders.heals(self.config, budget):
                    found.append(self._healed(kept))
        return found

    def _forward(self, tokens: int, length: int, logits: bool = False) -> float:
        """FLOPs of one pass: matrices, scores and their products, logits."""
        model = self.model
        used = sum(m.used * m.rows * m.columns for m in self.maps.values())
        scores = 4 * length * model.num_heads * model.head_size * model.num_layers
        head = 2 * model.vocab_size * model.hidden_size if logits else 0
        return tokens * (2.0 * used + scores + head)

    def _inputs(self) -> list[list[Map]]:
        """The maps that read one input together."""
        found: dict[str, list[Map]] = {}
        for path, each in self.maps.items():
            start, _, name = path.rpartition("/")
            same = {"key": "query", "value": "query", "gate": "up"}.get(name, name)
            found.setdefault(f"{start}/{same}", []).append(each)
        return list(found.values())

    def _layer_bytes(self) -> float:
        """A layer as it is stored and in float32."""
        item = max(a.dtype.itemsize for a in self.stored.arrays.values())
        return self.matched / self.model.num_layers * (item + 4)

    def _activations(self) -> float:
        """Of a batch, in one layer."""
        model = self.model
        inner = max((m.used * max(m.rows, m.columns) for m in self.maps.values()), default=0)
        wide = 6 * model.hidden_size + 3 * inner
        batch = max(compressing.BATCH_TOKENS // self.length, 1) * self.length
        return 4.0 * batch * (wide + 4 * model.num_heads * self.length)

    def _statistics(self) -> Phase:
        tokens, model = self.tokens, self.model
        inputs = [maps[0] for maps in self._inputs()]
        flops = self._forward(tokens, self.length)
        flops += tokens * _SYMMETRIC * sum(2.0 * m.used * m.rows**2 for m in inputs)
        held = sum(m.number * m.rows**2 for m in inputs)
        disk, passes = 4.0 * held, "1 forward"
        memory = 8.0 * held / model.num_layers + 4 * tokens * model.hidden_size
        if any(method.by_loss for method in self.methods):
            some = min(compression.CURVATURE_TOKENS, tokens)
            outputs = sum(m.columns**2 for m in self.maps.values())
            # Run again, and back: gradients of activations alone.
            flops += 2 * self._forward(some, self.length, logits=True)
            flops += some * _SYMMETRIC * 2.0 * outputs
            disk += 4.0 * outputs
            disk += 4.0 * model.num_layers * some * model.hidden_size
            passes = f"1 forward; of {some:,} tokens 1 more and 1 back"
            memory += 4.0 * outputs / model.num_layers
            memory += 3 * 4.0 * self.length * model.vocab_size
        memory += self.process + self._layer_bytes() + self._outside_bytes() + self._activations()
        return Phase("statistics", passes, flops, memory, disk=disk)

    def _outside_bytes(self) -> float:
        """Embeddings and head."""
        return self.stored_bytes * (1 - self.matched / self.total)

    def _compressed(self, name: str, label: str, kept: float) -> Phase:
        method = compression.METHODS[name]
        share = 1 - (1 - kept) * self.total / self.matched
        double, eigen, memory = self._factorised(method, share)
        groups = self._groups(name)
        for layers, number in groups.items():
            for each in (m for path, m in self.maps.items() if path.startswith("layers/0/")):
                more_double, more_eigen = _sharing(each, layers)
                double, eigen = double + number * more_double, eigen + number * more_eigen
            memory = max(memory, _of_threads(self.maps, _OF_PAIRS * layers / 2))
        memory += self.process + self._layer_bytes() + kept * self.stored_bytes
        flops, passes, is_best = 0.0, [], name == "best"
        widest = max(m.rows for m in self.maps.values())
        layerwise = method.layerwise and (not is_best or choosing.are_enough(self.tokens, widest))
        if layerwise:
            # "best" does not where another candidate turns out to be close to the original.
            passes.append("at most 2 forward" if is_best else "2 forward")
            flops += 2 * self._forward(self.tokens, self.length)
            for maps in self._inputs():
                rows, columns = maps[0].rows, sum(m.columns for m in maps)
                flops += self.tokens * 2.0 * (_SYMMETRIC * rows**2 + rows * min(rows, columns))
            memory += 4.0 * self.tokens * (8 * self.model.hidden_size) + self._activations()
        if is_best:
            held = max(self.config.calibration.windows // choosing.HELD_OUT, 1) * self.length
            tried = len(choosing.CANDIDATES) + 1 + layerwise
            passes.append(f"{tried} of {held:,} tokens")
            flops += tried * self._forward(held, self.length, logits=True)
            if layerwise:  # factors for other inputs as well
                eigen, double = 1.7 * eigen, 1.5 * double
            # A whole model is measured, next to the factors of its matrices in float32.
            memory += choosing.kept_bytes((m.rows, m.columns) for m in self.maps.values())
            memory += (1 - kept) * self.stored_bytes + 5 * kept * self.matched + _LOGITS
        disk = kept * self.stored_bytes * (1 + layerwise)
        at_most = bool(groups) if name == "shared" else is_best and layerwise
        given = (flops, memory, double, eigen, disk, at_most)
        return Phase(label, ", ".join(passes) or "none", *given)

    def _groups(self, name: str) -> dict[int, int]:
        """{layers: how many groups of so many a method tries for cores that they share}.

        "best" looks at a few pairs, and goes on only where one of them gains; "shared" at larger
        groups only where pairs gain.
        """
        depth = self.model.num_layers
        if name == "best":
            return {2: len(sharing.probed(range(depth)))} if depth > 1 else {}
        most = min(sharing.MOST, depth) if name == "shared" else 1
        return {layers: depth - layers + 1 for layers in range(2, most + 1)}

    def _factorised(self, method: compression.Method, share: float) -> tuple[float, float, float]:
        """(FLOPs in float64, sum of n^3 of eigenvectors, bytes) of all matrices, by one method."""
        double = eigen = 0.0
        times = 1 + (method.by_loss or method.by_log)  # spectra first, then factors
        for m in self.maps.values():
            small = min(m.rows, m.columns)
            eigen += m.number * small**3 * (1 + 0.4 * method.by_loss)
            weighing = 2.0 * m.rows * m.columns * (m.rows + m.columns * method.by_loss)
            double += m.number * times * (weighing + 2.0 * m.rows * m.columns * small)
            double += _by_turns(m, share) if m.number > 1 and len(method.forms) > 1 else 0.0
        if method.inputs == "weights":
            memory = 8.0 * max(m.number * m.rows * m.columns for m in self.maps.values())
        else:
            memory = _of_threads(self.maps, 3)
        # All experts of a map together, some times, and the covariance of each.
        together = (m for m in self.maps.values() if m.number > 1)
        of_experts = (8.0 * m.number * m.rows * (3 * m.columns + 2 * m.rows) for m in together)
        return double, eigen, max(memory, *of_experts, 0.0)

    def _measured(self, label: str, kept: float) -> Phase:
        tokens = self.config.evaluation.num_windows * self.window
        flops = self._forward(tokens, self.window, logits=True)
        memory = self.process + kept * self.stored_bytes + _LOGITS
        memory += 4.0 * self.total if kept < 1 else 0.0  # multiplied out
        name = label if kept == 1.0 else f"perplexity of {label}"
        return Phase(name, f"1 forward of {tokens:,} tokens", flops, memory)

    def _healed(self, kept: float) -> Phase:
        heal = decoders.heal_settings(self.config, self.stored)
        tokens = heal["steps"] * heal["batch_size"] * heal["length"]
        flops = self._forward(tokens, heal["length"], logits=True) * (1 + 3 * kept)
        # Factors, gradients and two moments in float32, and the original.
        memory = self.process + self.stored_bytes + 4 * 4.0 * kept * self.total + 4 * _LOGITS
        return Phase(f"healing, {heal['steps']} steps", f"of {tokens:,} tokens", flops, memory)

    def text(self, rates: Rates) -> str:
        """A row for each phase, and what all of them need together."""
        phases = self.phases()
        rows = [
            [
                *(p.name, p.passes, f"{p.single / 1e12:,.1f}", _time(p.seconds(rates))),
                *(f"{size / 1e9:.1f} GB" for size in (p.memory, p.disk)),
            ]
            for p in phases
        ]
        headers = ["phase", "passes", "TFLOPs", "time", "memory", "files"]
        seconds = _time(sum(phase.seconds(rates) for phase in phases))
        at_most = "at most " if any(phase.at_most for phase in phases) else ""
        most = max(phases, key=lambda phase: phase.memory)
        where = "in memory" if self.in_memory else "as stored"
        return "\n".join(
            [
                f"{self.total:,} parameters, {self.matched:,} of them in the "
                f"{sum(m.number for m in self.maps.values()):,} matrices that are compressed; "
                f"{self.stored_bytes / 1e9:.2f} GB {where}",
                f"rates measured now: {rates.single / 1e9:.0f} GFLOP/s in float32, "
                f"{rates.double / 1e9:.0f} in float64, {rates.eigen * 1024**3:.1f} s for the "
                "eigenvectors of 1,024 features",
                "",
                tables.text(headers, rows, 130, wrap=("phase", "passes")),
                "",
                f"all: {at_most}{seconds}, {most.memory / 1e9:.1f} GB of memory ({most.name}), "
                f"{sum(phase.disk for phase in phases) / 1e9:.1f} GB of files; compilation and "
                "speed measurements not counted",
            ]
        )


def _maps(stored: models.StoredModel, paths: Sequence[str]) -> dict[str, Map]:
    """{path: what is there}."""
    known, found = matrices.matrices_of(stored), {}
    for path in paths:
        experts = stored.config.experts_of(path.rpartition("/")[0])
        used = 1 if experts is None else experts.experts_per_token
        found[path] = Map(*known.all_sizes[path], known.num_matrices(path), used)
    return found


def _sharing(m: Map, layers: int) -> tuple[float, float]:
    """(FLOPs in float64, n^3 of eigenvectors) of the losses of a first core for so many layers."""
    n, columns = m.rows, layers * m.columns
    rank = min(n, columns)
    joint = (layers + 1) * n**3 / 3 + 2.0 * n * columns * (2 * n + 2 * rank)
    each = 2.0 * n * rank * (n + 2 * rank + m.columns)
    return joint + layers * each, float(rank**3)


def _of_threads(maps: Mapping[str, Map], number: float) -> float:
    """Bytes where each thread holds so many matrices (widest, widest) in float64."""
    widest = max(max(m.rows, m.columns) for m in maps.values())
    return matrices.num_threads() * number * 8.0 * widest**2


def _by_turns(m: Map, share: float) -> float:
    """FLOPs of the forms with a core that experts share, which have no closed form."""
    rank = share * m.number * m.rows * m.columns / (m.rows + m.number * m.columns)
    rank = min(rank, m.rows, m.columns)
    first = _STEPS * 2.0 * m.number * m.rows * rank * (m.rows + rank)
    return first + 2 * 2.0 * fitting.centre_work(m.rows, m.columns, m.number)


def _time(seconds: float) -> str:
    if seconds >= 120 * 60:
        return f"{seconds / 3600:,.0f} h"
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def plan(config, stored: models.StoredModel, names, in_memory: bool = False) -> Plan:
    """The plan of `experiments.compress` for a decoder; arguments as of `Plan`.

    Raises:
      ValueError: another kind of model, or see `Plan`.
    """
    if not isinstance(stored.abstract, models.LanguageModel):
        raise ValueError(
            f"--dry_run plans the compression of a decoder; {config.model} is none, and takes "
            "seconds to minutes: leave --dry_run out."
        )
    if others := [name for name in names if name not in compression.METHODS]:
        raise ValueError(
            f"--dry_run plans methods, and config.compare names the variant {others[0]!r}: leave "
            "--dry_run out."
        )
    if config.evaluation.num_windows is None:
        raise ValueError(
            "--dry_run reads no texts: how many windows of them are measured, "
            "config.evaluation.num_windows, must be a number, such as 8."
        )
    return Plan(config, stored, names, in_memory)
