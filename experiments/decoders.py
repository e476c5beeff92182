"""The comparison of `experiments.compress` for decoders: perplexity and speed at equal sizes."""

import dataclasses
import functools
import itertools
import math
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np
from absl import logging

from experiments import config_fields, evaluate, runs, sources
from experiments.render import decoders as render
from mpojax import checks, compression, data, files, io, models
from mpojax.compression import choosing
from mpojax.methods import healing
from mpojax.models import evaluation
from mpojax.training import progress as progress_lib
from mpojax.training import workdir as workdir_lib

DEFAULT = ("best", "whitened", "activation_scaled", "svd")
OF_MIXTURES = ("experts", "whitened", "activation_scaled", "svd")
_COUNT = checks.integer(1)
_FIELDS = {
    "budget_of": checks.one_of("model", "matrices"),
    "calibration.windows": _COUNT,
    "calibration.length": checks.integer(2),
    "calibration.order": checks.one_of("spread", "first", "random"),
    "evaluation.window": checks.integer(2),
    "evaluation.stride": _COUNT | checks.null(),
    "evaluation.num_windows": _COUNT | checks.null(),
    "evaluation.speed_rounds": checks.integer(0),
    "heal.steps": checks.integer(0),
    "heal.batch_size": _COUNT,
    "heal.length": checks.integer(2),
    "heal.learning_rate": checks.number(above=0),
    "sample.new_tokens": checks.integer(0),
}


@dataclasses.dataclass
class Setup:
    """What all variants share.

    Attributes:
      config, folder: of the run.
      methods: that are compared.
      stored: the dense model; its arrays are read where they are used.
      matched: parameters of the matrices that rules match.
      tokens: of the calibration texts.
      batches: what is read of them for compression.
      held_out: what method "best" chooses by.
      test: token ids that perplexity is measured on.
      tokenizer: folder of the tokenizer, saved with every model.
    """

    config: ml_collections.ConfigDict
    folder: pathlib.Path
    methods: Sequence[str]
    stored: models.StoredModel
    matched: int
    tokens: np.ndarray
    batches: list[dict[str, np.ndarray]]
    held_out: list[dict[str, np.ndarray]]
    test: np.ndarray
    tokenizer: str | None
    calibration: compression.Calibration | None = None

    def check_texts(self, workdir: workdir_lib.Workdir) -> None:
        """Checks that a run resumes with the texts that it began with."""
        workdir.check_data(runs.of_arrays(calibration=self.tokens, test=self.test))

    @property
    def total(self) -> int:
        """Parameters of the dense model."""
        return sum(models.count_parameters(self.stored.abstract).values())

    def size(self, budget: float) -> int:
        """Parameters of the whole model that a budget of the config allows."""
        return size_of(self.config, budget, self.total, self.matched)


def size_of(config, budget: float, total: int, matched: int) -> int:
    """Parameters that a budget allows a model of so many, so many of them in matched matrices."""
    if budget > 1:
        return int(budget)
    if config.budget_of == "model":
        return int(budget * total)
    return total - matched + int(budget * matched)


def set_up(config, folder: pathlib.Path, stored: models.StoredModel, source: str, names) -> Setup:
    """Reads all texts and checks everything, before anything is written.

    Args:
      names: of methods, keys of `compression.METHODS`; none for `default`.

    Raises:
      ValueError: see `check`, `_tokens` and `healing.batches_of`.
    """
    names = names or default(stored)
    check(config, stored, names)
    tokenizer, tokenizer_folder = sources.load_tokenizer(source)
    sources.check_tokenizer(tokenizer, stored.config.vocab_size, source)
    ids, length = _tokens(config, "calibration", "length", stored, tokenizer)
    test, _ = _tokens(config, "evaluation", "window", stored, tokenizer)
    windows, settings = len(ids) // length, config.calibration
    if windows < settings.windows:
        logging.warning("calibration: %d windows of text instead of %d", windows, settings.windows)
    rows = ids[: windows * length].reshape(windows, length)
    if config.heal.steps:
        given = heal_settings(config, stored)
        healing.batches_of(stored, ids, given["length"], given["batch_size"])
    matched = sum(matched_sizes(config, stored).values())
    given = (stored, matched, ids, *_batches(rows, settings), test, tokenizer_folder)
    return Setup(config, folder, names, *given)


def _tokens(config, part: str, field: str, stored, tokenizer) -> tuple[np.ndarray, int]:
    """(token ids of the texts of a part of a config, tokens of a window of them), checked."""
    settings = config[part]
    ids = read_tokens(settings.texts, settings.split, settings.data_dir, tokenizer)
    evaluation.check_vocabulary(stored, ids, f"config.{part}.texts={settings.texts!r}")
    window = min(settings[field], stored.config.max_positions)
    if len(ids) < window:
        raise ValueError(
            f"config.{part}.texts={settings.texts!r} has {len(ids)} tokens, fewer than one window "
            f"of config.{part}.{field}={window}; give more text."
        )
    return ids, window


def _batches(windows: np.ndarray, settings) -> tuple[list, list]:
    """(batches to calibrate on, batches to choose by) of the windows of a text.

    An eighth as many are held out; of a text without more windows every eighth.
    """
    number = min(settings.windows, len(windows))
    wanted = number + max(number // choosing.HELD_OUT, 1)
    if len(windows) < wanted:
        return compression.split_held_out(compression.calibration_batches(windows[:number]))
    rows = {
        "first": lambda: np.arange(wanted),
        "spread": lambda: np.linspace(0, len(windows) - 1, wanted).astype(int),
        "random": lambda: np.random.default_rng(settings.seed).permutation(len(windows))[:wanted],
    }[settings.order]()
    held = np.linspace(0, wanted - 1, wanted - number).astype(int)
    if settings.order == "first":
        held = np.arange(number, wanted)
    held = np.isin(np.arange(wanted), held)
    return tuple(compression.calibration_batches(windows[rows[of]]) for of in (~held, held))


def rules_of(config) -> list[compression.Rule]:
    """Rules for the matrices that a config names."""
    patterns = ("layers",) if tuple(config.matrices) == ("all",) else config.matrices
    return [compression.Rule(pattern) for pattern in patterns]


def default(stored: models.StoredModel) -> tuple[str, ...]:
    """The methods that are compared where nobody says which."""
    return OF_MIXTURES if stored.config.experts else DEFAULT


def matched_sizes(config, stored: models.StoredModel) -> dict[str, int]:
    """Parameters of the matrices that a config names, by path; of all experts together."""
    paths = compression.matched(stored, rules_of(config))
    return {path: math.prod(stored.arrays[models.dense_name(path)].shape) for path in paths}


def check(config, stored: models.StoredModel, names: Sequence[str]) -> None:
    """Raises ValueError for fields that are wrong, or budgets that these methods cannot meet."""
    values = {f"config.{name}": value for name, value in config_fields.leaves(config)}
    checks.check(values, {f"config.{name}": allowed for name, allowed in _FIELDS.items()})
    why, both = "methods choose ranks by a budget", f"config.budgets={tuple(config.budgets)}"
    checks.check_clashes(
        {
            f"config.budget={config.budget} and {both} exclude each other; give one": (
                config.budget is not None and tuple(config.budgets)
            ),
            f"{why}; leave config.bond={config.bond} out": config.bond is not None,
            f"{why}; leave config.keep_dense=False out": not config.keep_dense,
        }
    )
    budgets = budgets_of(config)
    if not budgets:
        raise ValueError(
            "a decoder needs a size: --config.budget=0.6, a fraction of its parameters, or "
            '--config.budgets="(0.8, 0.6)".'
        )
    checks.check_clashes(
        {
            f"config: a budget of {budget} is neither a fraction, at most 1, nor a whole number "
            "of parameters": budget > 1 and not float(budget).is_integer()
            for budget in budgets
        }
    )
    some = checks.sequence(checks.one_of(*budgets))
    checks.check_value("config.heal.budgets", config.heal.budgets, some)
    checks.check_value("config.evaluation.speed_budgets", config.evaluation.speed_budgets, some)
    total = sum(models.count_parameters(stored.abstract).values())
    matched = sum(matched_sizes(config, stored).values())
    for budget, name in itertools.product(budgets, names):
        size = size_of(config, budget, total, matched)
        try:
            compression.check_rules(stored, rules_of(config), budget=size, method=name)
        except compression.SmallBudgetError as error:
            base = total if config.budget_of == "model" else matched
            least = math.ceil(1e4 * (1 - (total - error.smallest) / base)) / 1e4
            raise ValueError(
                f"a budget of {budget} (config.budget_of={config.budget_of!r}) allows {size:,} of "
                f"{total:,} parameters, but with every rank at 1 the model still has "
                f"{error.smallest:,}: the smallest feasible budget is {least}."
            ) from None


def budgets_of(config) -> tuple[float, ...]:
    """Sizes that a config asks for, as it says them."""
    return tuple(config.budgets) or ((config.budget,) if config.budget is not None else ())


def heal_settings(config, stored: models.StoredModel) -> dict[str, Any]:
    """Arguments of `healing.heal`; a text has no more tokens than the model has positions."""
    settings = {name: value for name, value in config.heal.items() if name != "budgets"}
    return settings | {"length": min(settings["length"], stored.config.max_positions)}


def heals(config, budget: float) -> bool:
    """Whether the best result of this size is tuned."""
    return bool(config.heal.steps) and budget in (tuple(config.heal.budgets) or (budget,))


def read_tokens(name: str, split: str, data_dir: str, tokenizer) -> np.ndarray:
    """Token ids of the texts that a name stands for, see `data.load_documents`."""
    documents = data.load_documents(name, split, data_dir or None)
    return data.TokenStream.from_documents(documents, tokenizer, name).tokens


def run(setup: Setup, workdir: workdir_lib.Workdir, start: float) -> str:
    """Compresses, measures, writes; returns the text to print. Finished variants are kept."""
    label = {"label": "dense"}
    rows = [_record(setup, "dense", lambda: _measured(setup, setup.stored.load(), label))]
    print(f"dense: perplexity {rows[0]['perplexity']:.2f}", flush=True)
    for budget in budgets_of(setup.config):
        for method in setup.methods:
            name = f"{method}_{text_of(budget)}"
            made = functools.partial(_compressed, setup, method, budget, name)
            row = _record(setup, name, made)
            rows.append(row)
            print(f"{name}: perplexity {row['perplexity']:,.2f}", flush=True)
            if method == "best" and heals(setup.config, budget):
                name = f"healed_{text_of(budget)}"
                rows.append(_record(setup, name, lambda r=row, n=name: _healed(setup, r, n)))
                print(f"{name}: perplexity {rows[-1]['perplexity']:,.2f}", flush=True)
    files.remove_tree(setup.folder / "calibration")  # may be larger than the model
    if setup.config.evaluation.speed_rounds:
        made = functools.partial(_speeds, setup, rows)
        speeds = runs.kept(setup.folder / "compression" / "speeds.json", made)
        rows = [row | speeds.get(row["variant"], {}) for row in rows]
    return render.write(setup.config, workdir, rows, time.perf_counter() - start)


def text_of(budget: float) -> str:
    """A budget in a name: percent, or parameters."""
    return f"{100 * budget:g}" if budget <= 1 else f"{budget:.0f}"


def shown(budget: float) -> str:
    """A budget in a table."""
    return f"{text_of(budget)} %" if budget <= 1 else f"{budget:,.0f} parameters"


def _record(setup: Setup, name: str, make) -> dict[str, Any]:
    path = setup.folder / "compression" / f"{name}.json"
    return runs.kept(path, lambda: {"variant": name, **make()})


def _compressed(setup: Setup, name: str, budget: float, variant: str) -> dict[str, Any]:
    """The record of one method at one size; saves the model."""
    method = compression.METHODS[name]
    start = time.perf_counter()
    partial = setup.folder / "compression" / f"{variant}.partial"
    if setup.calibration is None:
        setup.calibration = _calibrated(setup)
    with progress_lib.progress(f"{method.label} at {shown(budget)}") as advance:
        model, report = compression.compress(
            setup.stored,
            rules_of(setup.config),
            budget=setup.size(budget),
            method=name,
            calibration=setup.calibration,
            batches=setup.batches if method.layerwise else None,
            held_out=setup.held_out,
            resume=partial,
            progress=advance,
        )
    seconds = time.perf_counter() - start
    report.to_csv(setup.folder / "compression" / f"{variant}.csv")
    report.plot(setup.folder / "plots" / f"{variant}_layers.png")
    target = setup.folder / "models" / variant
    io.save_pretrained(model, target, tokenizer_from=setup.tokenizer)
    removed = setup.total - report.parameters
    content = {
        "label": method.label,
        "method": name,
        "budget": shown(budget),
        "matrices_ratio": 1 - removed / setup.matched,
        "stored_bytes": (target / "model.safetensors").stat().st_size,
        "seconds": seconds,
        **{key: value for key, value in report.to_dict().items() if key != "unmatched"},
    }
    content = _measured(setup, model, content)
    files.remove_tree(partial)  # not before: layers take the longest, should this be stopped
    return content


def _healed(setup: Setup, row: Mapping[str, Any], variant: str) -> dict[str, Any]:
    """The record of a compressed model after healing; saves the model."""
    start, settings = time.perf_counter(), heal_settings(setup.config, setup.stored)
    student = io.load_pretrained(setup.folder / "models" / row["variant"])
    given = (student, setup.stored.load(), setup.tokens)
    model = healing.heal(*given, **settings, workdir=setup.folder / "heal" / variant)
    if model is None:
        raise SystemExit(0)  # by a signal: the same command resumes
    target = setup.folder / "models" / variant
    io.save_pretrained(model, target, tokenizer_from=setup.tokenizer)
    kept = ("budget", "matrices_ratio", "stored_bytes", "parameters")
    content = {name: row[name] for name in kept} | {"label": "ours, healed", "method": "healed"}
    return _measured(setup, model, content | {"seconds": time.perf_counter() - start})


def _calibrated(setup: Setup) -> compression.Calibration:
    """Covariances of all texts, and curvatures of some where a method needs them."""
    with progress_lib.progress("statistics of the calibration texts, in percent") as advance:
        return compression.calibrate(
            setup.stored,
            setup.batches,
            curvature=any(compression.METHODS[name].by_loss for name in setup.methods),
            curvature_tokens=compression.CURVATURE_TOKENS,
            folder=setup.folder / "calibration",
            progress=lambda done: advance(int(100 * done / len(setup.batches)), 100, ""),
        )


def _measured(setup: Setup, model: models.Model, content: Mapping) -> dict[str, Any]:
    """`content` with the perplexity of a model; of dense, best and healed ones a sample, too."""
    settings = setup.config.evaluation
    # The same function in float32, by one program for all variants.
    dense = compression.merge(model) if model.shapes else model
    with progress_lib.progress(f"perplexity of {content['label']}") as advance:
        found = models.perplexity(
            dense,
            setup.test,
            window=min(settings.window, model.config.max_positions),
            stride=settings.stride,
            num_windows=settings.num_windows,
            progress=advance,
        )
    content = {
        "parameters": sum(models.count_parameters(model).values()),
        **content,
        "perplexity": found.value,
        "protocol": found.protocol,
        "tokens": found.num_tokens,
    }
    if content.get("method") in (None, *render.OURS, "healed") and setup.config.sample.new_tokens:
        content["sample"] = _sample(setup, dense)
    return content


def _speeds(setup: Setup, rows: Sequence[Mapping]) -> dict[str, dict[str, float]]:
    """{variant: tokens per second; of the best of each size also as ratios to the dense model's}.

    After everything else: the dense model is loaded once, and next to it is one other at a time.
    The dense model's own speed is the one seen next to the first of them.
    """
    # As a compressed model is, whose layers differ in their ranks: one by one, not scanned.
    dense = models.unstacked(setup.stored.load())
    length, new = evaluate.timed_lengths(dense, 256, 32)
    settings = setup.config.evaluation
    options = {"prompt_length": length, "new_tokens": new, "rounds": settings.speed_rounds}
    sizes = {shown(each) for each in settings.speed_budgets or budgets_of(setup.config)}
    ours = [row for row in rows if row.get("method") in render.OURS]
    names = [row["variant"] for row in ours if row["budget"] in sizes]
    logging.info("timing %s: compiling, then the median of rounds ...", ", ".join(names))
    found: dict[str, dict[str, float]] = {}
    for name in names:
        model = io.load_pretrained(setup.folder / "models" / name, keep_16_bits=True)
        with progress_lib.waiting(f"timing {name}"):
            own, other = models.speeds([models.unstacked(model), dense], **options)
        del model  # before the next one is loaded
        found.setdefault("dense", other._asdict())
        ratios = {f"{k}_ratio": v / getattr(other, k) for k, v in own._asdict().items()}
        found[name] = own._asdict() | ratios
        logging.info("%s: %.1f tokens/s", name, own.decode)
    return found


def _sample(setup: Setup, model: models.Model) -> str:
    """A prompt and its greedy continuation."""
    tokenizer = data.Tokenizer.from_folder(setup.tokenizer)
    settings = setup.config.sample
    greedy = {"max_new_tokens": settings.new_tokens, "sampling": models.Sampling()}
    return settings.prompt + evaluate.continuation(model, tokenizer, settings.prompt, **greedy)
