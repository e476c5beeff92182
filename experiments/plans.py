"""What compressing a decoder costs, before it is done: passes, time, memory, files.

From its settings and the headers of its files alone. FLOPs are counted as in
`mpojax.training.dry_run`, 2 for a multiply-add; seconds are FLOPs over rates that are measured on
this machine when the plan is made.
"""

import dataclasses
import math
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from experiments import decoders
from mpojax import compression, models, tables
from mpojax.compression import choosing, compressing, matrices

# Bytes of the process itself: Python, jax, compiled programs.
_PROCESS = 0.6e9
# Of a product x^T x this part is computed, the rest being its mirror image.
_SYMMETRIC = 0.65
# Logits exist for so many bytes at a time.
_LOGITS = 3 * 2**28


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


@dataclasses.dataclass(frozen=True)
class Phase:
    """A part of the work: what it runs, its FLOPs in both precisions, bytes in memory, in files."""

    name: str
    passes: str
    single: float
    memory: float
    double: float = 0.0
    eigen: float = 0.0
    disk: float = 0.0

    def seconds(self, rates: Rates) -> float:
        """At these rates; `eigen` is a sum of n^3."""
        return self.single / rates.single + self.double / rates.double + self.eigen * rates.eigen


class Plan:
    """Costs of the phases for one config; attributes as in the config's terms."""

    def __init__(self, config, stored: models.StoredModel, names):
        """Reads no weights and no texts.

        Raises:
          ValueError: no budget, or one that cannot be met.
        """
        self.config, self.model, self.stored = config, stored.config, stored
        self.methods = [compression.METHODS[n] for n in names or decoders.DEFAULT]
        self.names = list(names or decoders.DEFAULT)
        sizes = stored.config.matrix_sizes()
        self.sizes = {path: sizes[path] for path in decoders.matched_sizes(config, stored)}
        self.matched = sum(math.prod(size) for size in self.sizes.values())
        self.total = sum(models.count_parameters(stored.abstract).values())
        self.stored_bytes = sum(
            a.dtype.itemsize * math.prod(a.shape) for a in stored.arrays.values()
        )
        self.budgets = decoders.budgets_of(config)
        for budget in self.budgets:
            size = decoders.size_of(config, budget, self.total, self.matched)
            rules = decoders.rules_of(config, form="low_rank")
            compression.check_rules(stored, rules, budget=size)
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
        scores = 4 * length * model.num_heads * model.head_size * model.num_layers
        head = 2 * model.vocab_size * model.hidden_size if logits else 0
        return tokens * (2.0 * self.matched + scores + head)

    def _inputs(self) -> dict[str, list[tuple[int, int]]]:
        """{an input: sizes of the matrices that read it}."""
        found: dict[str, list[tuple[int, int]]] = {}
        for path, size in self.sizes.items():
            start, _, name = path.rpartition("/")
            same = {"key": "query", "value": "query", "gate": "up"}.get(name, name)
            found.setdefault(f"{start}/{same}", []).append(size)
        return found

    def _layer_bytes(self) -> float:
        """A layer as it is stored and in float32."""
        item = max(a.dtype.itemsize for a in self.stored.arrays.values())
        return self.matched / self.model.num_layers * (item + 4)

    def _activations(self) -> float:
        """Of a batch, in one layer."""
        model = self.model
        wide = 6 * model.hidden_size + 3 * model.intermediate_size
        batch = max(compressing.BATCH_TOKENS // self.length, 1) * self.length
        return 4.0 * batch * (wide + 4 * model.num_heads * self.length)

    def _statistics(self) -> Phase:
        tokens, model = self.tokens, self.model
        inputs = [sizes[0][0] for sizes in self._inputs().values()]
        flops = self._forward(tokens, self.length)
        flops += tokens * _SYMMETRIC * sum(2.0 * n**2 for n in inputs)
        disk, passes = 4.0 * sum(n**2 for n in inputs), "1 forward"
        memory = 8.0 * max(n**2 for n in inputs) + 4 * tokens * model.hidden_size
        if any(method.by_loss for method in self.methods):
            some = min(compression.CURVATURE_TOKENS, tokens)
            outputs = [columns for _, columns in self.sizes.values()]
            # Run again, and back: gradients of activations alone.
            flops += 2 * self._forward(some, self.length, logits=True)
            flops += some * _SYMMETRIC * sum(2.0 * n**2 for n in outputs)
            disk += 4.0 * sum(n**2 for n in outputs)
            disk += 4.0 * model.num_layers * some * model.hidden_size
            passes = f"1 forward; of {some:,} tokens 1 more and 1 back"
            memory += 4.0 * sum(n**2 for n in outputs) / model.num_layers
            memory += 3 * 4.0 * self.length * model.vocab_size
        memory += _PROCESS + self._layer_bytes() + self._outside_bytes() + self._activations()
        return Phase("statistics", passes, flops, memory, disk=disk)

    def _outside_bytes(self) -> float:
        """Embeddings and head."""
        return self.stored_bytes * (1 - self.matched / self.total)

    def _compressed(self, name: str, label: str, kept: float) -> Phase:
        method = compression.METHODS[name]
        flops = double = eigen = 0.0
        memory = _PROCESS + self._layer_bytes() + kept * self.stored_bytes
        times = 1 + (method.by_loss or method.by_log)  # spectra first, then factors
        for rows, columns in self.sizes.values():
            small = min(rows, columns)
            eigen += small**3 * (1 + 0.4 * method.by_loss)
            weighing = 2.0 * rows * columns * (rows + columns * method.by_loss)
            double += times * (weighing + 2.0 * rows * columns * small)
        if method.inputs == "weights":
            memory += 8.0 * max(math.prod(size) for size in self.sizes.values())
        else:
            widest = max(max(size) for size in self.sizes.values())
            memory += matrices.num_threads() * 3 * 8.0 * widest**2
        passes = "none"
        if method.layerwise:
            passes = "2 forward"
            flops = 2 * self._forward(self.tokens, self.length)
            for sizes in self._inputs().values():
                rows, columns = sizes[0][0], sum(size[1] for size in sizes)
                flops += self.tokens * 2.0 * (_SYMMETRIC * rows**2 + rows * min(rows, columns))
            memory += 4.0 * self.tokens * (8 * self.model.hidden_size) + self._activations()
        if name == "best":
            held = max(self.config.calibration.windows // choosing.HELD_OUT, 1) * self.length
            tried = len(choosing.CANDIDATES) + 2
            passes = f"2 forward, {tried} of {held:,} tokens"
            flops += tried * self._forward(held, self.length, logits=True)
            eigen, double = 1.7 * eigen, 1.5 * double  # factors of all candidates as well
            # A whole model is measured, next to the factors of its matrices in float32.
            memory += (1 - kept) * self.stored_bytes + 5 * kept * self.matched + _LOGITS
        disk = kept * self.stored_bytes * (1 + method.layerwise)
        return Phase(label, passes, flops, memory, double, eigen, disk)

    def _measured(self, label: str, kept: float) -> Phase:
        tokens = self.config.evaluation.num_windows * self.window
        flops = self._forward(tokens, self.window, logits=True)
        memory = _PROCESS + kept * self.stored_bytes + _LOGITS
        memory += 4.0 * self.total if kept < 1 else 0.0  # multiplied out
        name = label if kept == 1.0 else f"perplexity of {label}"
        return Phase(name, f"1 forward of {tokens:,} tokens", flops, memory)

    def _healed(self, kept: float) -> Phase:
        heal = self.config.heal
        tokens = heal.steps * heal.batch_size * heal.length
        flops = self._forward(tokens, heal.length, logits=True) * (1 + 3 * kept)
        # Factors, gradients and two moments in float32, and the original.
        memory = _PROCESS + self.stored_bytes + 4 * 4.0 * kept * self.total + 4 * _LOGITS
        return Phase(f"healing, {heal.steps} steps", f"of {tokens:,} tokens", flops, memory)

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
        seconds = sum(phase.seconds(rates) for phase in phases)
        most = max(phases, key=lambda phase: phase.memory)
        return "\n".join(
            [
                f"{self.total:,} parameters, {self.matched:,} of them in the {len(self.sizes)} "
                f"matrices that are compressed; {self.stored_bytes / 1e9:.2f} GB as stored",
                f"rates measured now: {rates.single / 1e9:.0f} GFLOP/s in float32, "
                f"{rates.double / 1e9:.0f} in float64, {rates.eigen * 1024**3:.1f} s for the "
                "eigenvectors of 1,024 features",
                "",
                tables.text(headers, rows, 130, wrap=("phase", "passes")),
                "",
                f"all: {_time(seconds)}, {most.memory / 1e9:.1f} GB of memory ({most.name}), "
                f"{sum(phase.disk for phase in phases) / 1e9:.1f} GB of files; compilation and "
                "speed measurements not counted",
            ]
        )


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:,.0f} min"


def plan(config, stored: models.StoredModel, names) -> Plan:
    """The plan of `experiments.compress` for a decoder.

    Raises:
      ValueError: another kind of model, or see `Plan`.
    """
    if not isinstance(stored.abstract, models.LanguageModel):
        raise ValueError(
            f"--dry_run plans the compression of a decoder; {config.model} is none, and takes "
            "seconds to minutes: leave --dry_run out."
        )
    if stored.config.experts:
        raise ValueError(
            f"--dry_run plans models whose tokens go through all matrices; {config.model} is a "
            "mixture of experts: leave --dry_run out."
        )
    decoders.check_budgets(config)
    return Plan(config, stored, names)
