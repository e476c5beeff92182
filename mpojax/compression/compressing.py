"""Compression of a model by rules: its dense matrices become chains."""

import contextlib
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from mpojax import checks, files, models
from mpojax.compression import allocation as allocation_lib
from mpojax.compression import choosing, experts, layerwise, low_rank, sharing
from mpojax.compression import rules as rules_lib
from mpojax.compression.calibration import (
    Calibration,
    calibrated,
    runs_by_layers,
    some_batches,
)
from mpojax.compression.decomposition import Decomposer
from mpojax.compression.matrices import Matrices, matrices_of, one_blas_thread
from mpojax.compression.report import CompressionReport
from mpojax.compression.rules import Target
from mpojax.models.arrays import check_finite


@one_blas_thread
def compress(
    model: nnx.Module | models.StoredModel,
    rules: rules_lib.Rules | None = None,
    *,
    budget: float | int | None = None,
    bond: int | None = None,
    share_bonds: bool | None = None,
    method: str | None = None,
    calibration: Calibration | Sequence[Any] | np.ndarray | None = None,
    batches: Sequence[Any] | np.ndarray | None = None,
    held_out: Sequence[Any] | np.ndarray | None = None,
    resume: str | os.PathLike | None = None,
    allocation: str = "error",
    keep_dense: bool = True,
    progress: Callable[[int, int, str], None] | None = None,
) -> tuple[nnx.Module, CompressionReport]:
    """Makes a model smaller: the matrices that the rules match are written in MPO form.

    **Two ways.** With calibration texts and a budget: `method`, low rank by what the model does on
    the texts, the best of which keeps by far the most of a model's quality. Else, or with rules
    that say more than a pattern: chains of any number of cores, by the settings of the rules.
    Matrices are decomposed one after the other on the host in float64. Without `budget`, `bond` or
    bonds in the rules the chains have full bonds and the model computes the same as before.

    Args:
      model: its matrices must be dense where a rule matches. Any Flax NNX module: of one of your
        own, `nnx.Linear`, `nnx.LinearGeneral` and `nnx.Embed` layers become chains, named by their
        paths, and the result is a new module of the same class. Or what `io.open_pretrained` gives,
        of which a layer at a time is in memory. Matrices in 16 bits become chains in bfloat16.
      rules: (regular expression over matrix paths, settings) or `Rule`; settings are the fields of
        `mpojax.compression.MatrixRule`, for example
        `[Rule(".*/(query|key|value|out|up|down)", bond=64), Rule("embeddings/word", rank=64)]`.
        The pattern "layers" stands for all matrices of the layers (of a module of your own: all
        linear layers), "all" for those, the token embedding and a language model's output map.
        None: "layers", `data_aware` where there is a calibration; then `budget` or `bond` is
        needed.
      budget: parameters of the whole compressed model, at most: a float in (0, 1] is a fraction of
        its dense count, an integer above 1 the count itself. Bonds that the rules leave open are
        chosen for least error; a matrix whose chain would save nothing stays dense.
      bond: cap for the rules that say nothing about bonds; not together with `budget`.
      share_bonds: matrices of one role have the same bonds in all layers, so that the layers stay
        in one stack, which compiles once; False chooses for each matrix alone. None: True by rules,
        False by a method, whose ranks are worth more alone (a few percent of the perplexity).
      method: a key of `mpojax.compression.METHODS`, with a budget, a calibration and rules that are
        patterns alone. None: "best" where the calibration is a list of batches, or "pivoted" where
        a model cannot be run layer by layer; else the way of the rules.
      calibration: batches of texts as `compression.calibrate` takes them, or an array (N, length)
        of token ids; the first are held in memory. Or what `compression.calibrate` gave for this
        model: for rules with `data_aware=True` (the report then has the errors of outputs as well),
        or for a method that needs no batches.
      batches: texts for a method that runs layer by layer, such as "best", and a calibration
        with curvature, which is then not measured again.
      held_out: texts by which method "best" chooses, as `calibration`; None: every eighth row of
        the calibration texts, which then is not calibrated on.
      resume: folder in which a method keeps the statistics that it measures, and "best" and
        "layerwise" their finished layers: an interrupted call resumes from there, to the same
        result.
      allocation: what a budget weighs errors by. "error": each matrix' relative squared error times
        the root of its number of entries. "first_order": by how much it changes the loss to first
        order, from a calibration with a loss.
      keep_dense: whether a budget may leave matrices dense whose chains would save nothing; False
        makes a chain of every matrix that a rule matches, whatever it costs the others.
      progress: called as progress(done, total, path) after each step.

    Returns:
      (compressed model, report).

    Raises:
      ValueError: rules that are malformed, match nothing, overlap, or do not fit; a budget that
        cannot be met (the smallest one is named); non-finite weights; a calibration that is
        missing, of another model, or not usable; neither rules nor a size.

    Example:

        >>> import mpojax as mj
        >>> import numpy as np
        >>> from flax import nnx
        >>> from mpojax import models
        >>> sizes = {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "intermediate_size": 32}
        >>> config = models.EncoderConfig(vocab_size=99, max_positions=16, **sizes)
        >>> model = models.build(config, rngs=nnx.Rngs(0))
        >>> small, report = mj.compress(model, budget=0.7)
        >>> report.parameters <= 0.7 * report.dense_parameters
        True
        >>> ids = np.random.default_rng(0).integers(1, 99, (8, 16))
        >>> small, report = mj.compress(model, budget=0.7, calibration=ids)
        >>> report.rows[0].method, report.parameters <= 0.7 * report.dense_parameters
        ('ours', True)
        >>> small, report = mj.compress(model, [mj.Rule(".*/(query|key)", bond=3)])
        >>> [row.path for row in report.rows][:2], max(report.rows[0].bonds)
        (['layers/0/attention/query', 'layers/0/attention/key'], 3)

    A module of your own:

        >>> class MLP(nnx.Module):
        ...     def __init__(self, rngs):
        ...         self.up, self.down = (
        ...             nnx.Linear(m, n, rngs=rngs) for m, n in ((64, 256), (256, 10))
        ...         )
        ...
        ...     def __call__(self, x):
        ...         return self.down(nnx.relu(self.up(x)))
        >>> small, report = mj.compress(MLP(nnx.Rngs(0)), [mj.Rule("up", bond=8)])
        >>> type(small).__name__, type(small.up).__name__, type(small.down).__name__
        ('MLP', 'MPOLinear', 'Linear')

    Gao et al., "Compressing deep neural networks by matrix product operators" (2020,
    arXiv:1904.06194); Liu et al., MPOP (ACL 2021, arXiv:2106.02205).
    """
    matrices = matrices_of(model)
    if method is not None or not isinstance(calibration, Calibration | None):
        _check_is_of_method(bond, allocation, keep_dense)
        texts = calibration, () if batches is None else batches, held_out
        options = {"share_bonds": bool(share_bonds), "resume": resume, "progress": progress}
        return _by_method(matrices, rules, budget, method, texts, options)
    targets, parameter_budget = _checked(matrices, rules, budget, bond, calibration, allocation)
    check_finite(matrices.of_paths([t.path for t in targets]), "the model")
    groups = allocation_lib.grouped(targets, share_bonds is not False)
    decomposer = Decomposer(matrices.weights, groups, calibration, progress)
    decomposer.run(parameter_budget, allocation, keep_dense)
    compressed = matrices.with_chains(decomposer.chains)
    order = [target.path for target in targets]
    rows = [decomposer.rows[path] for path in order if path in decomposer.rows]
    report = _report(matrices, compressed, order, rows, decomposer.spectra)
    if budget is not None:
        allocation_lib.warn_if_uneven(report, matrices.sizes)
    return compressed, report


def _check_is_of_method(bond, allocation: str, keep_dense: bool) -> None:
    why = "a method chooses ranks by a budget and what it loses"
    checks.check_clashes(
        {
            f"{why}; leave bond={bond!r} out": bond is not None,
            f"{why}; leave allocation={allocation!r} out": allocation != "error",
            f"{why}; leave keep_dense={keep_dense!r} out": not keep_dense,
        }
    )


def _by_method(
    matrices: Matrices, rules, budget, method: str | None, texts: tuple, options: Mapping
) -> tuple[nnx.Module, CompressionReport]:
    """As `compress`; texts are (calibration, batches, held_out)."""
    if method is None:
        method = "pivoted" if layerwise.refusal(matrices.model) else "best"
        is_mixture = matrices.expert_sizes and runs_by_layers(matrices.model)
        method = "experts" if is_mixture else method
    checks.check_value("method", method, checks.one_of(*low_rank.METHODS))
    if budget is None or texts[0] is None:
        raise ValueError(f"method={method!r} needs a budget and a calibration, such as batches.")
    paths, parameter_budget = _matched_by_method(matrices, rules, budget, method)
    check_finite(matrices.of_paths(paths), "the model")
    with contextlib.ExitStack() as stack:
        folder = _statistics_folder(matrices, paths, options["resume"], stack)
        calibration, batches, held_out = _calibrated(matrices, method, *texts, folder)
        low_rank.check(method, matrices, paths, calibration, batches)
        low_rank.warn_of_few(matrices, paths, calibration)
        plain = [path for path in paths if path in matrices.sizes]
        options |= {"expert_paths": [path for path in paths if path not in plain]}
        task = low_rank.Task(matrices, plain, parameter_budget, calibration, batches, **options)
        choice = None
        if method == "best":
            result, rows, choice = choosing.best(task, held_out)
        elif method == "shared":
            result, rows = sharing.compress(task)
        else:
            result, rows = low_rank.approximations(task, low_rank.METHODS[method])
        of_experts = experts.approximations(task, low_rank.METHODS[method])
        notes = (*of_experts.notes, *experts.unreached(calibration, task.expert_paths))
    chains, dense = result.chains | of_experts.chains, result.dense | of_experts.bases
    compressed = matrices.with_chains(chains, dense, result.groups)
    by_path = {row.path: row for row in (*rows, *of_experts.rows)}
    rows = [by_path[path] for path in paths if path in by_path]
    return compressed, _report(matrices, compressed, paths, rows, {}, choice, notes)


def _matched_by_method(matrices: Matrices, rules, budget, method: str) -> tuple[list[str], int]:
    """Matrices that a method makes chains of, and parameters that they may have together."""
    patterns = rules_lib.patterns([rules_lib.Rule("layers")] if rules is None else rules)
    rules = [rules_lib.Rule(pattern, form="low_rank") for pattern in patterns]
    # Of other models than decoders experts stay as they are: their inputs are not known.
    given = (matrices, rules, budget, None, None, "error")
    targets, parameter_budget = _checked(*given, with_experts=runs_by_layers(matrices.model))
    paths = [target.path for target in targets]
    low_rank.check_model(method, matrices, paths)
    return paths, parameter_budget


def _calibrated(matrices: Matrices, method: str, calibration, batches, held_out, folder):
    """(calibration, batches to learn from, batches to choose by)."""
    held_out = [] if held_out is None else calibration_batches(held_out)
    if isinstance(calibration, Calibration):
        return calibration, calibration_batches(batches), held_out
    batches = calibration_batches(calibration)
    if method == "best" and not held_out:
        batches, held_out = choosing.split(batches)
    options = {"curvature": low_rank.METHODS[method].by_loss, "folder": folder}
    learned = batches
    if runs_by_layers(matrices.model):
        options["curvature_tokens"] = CURVATURE_TOKENS
    elif options["curvature"]:
        # One pass measures covariances and curvature: no more batches than the costly one needs.
        learned = [batches[index] for index in some_batches(batches, CURVATURE_TOKENS)]
    return calibrated(matrices, learned, **options), batches, held_out


def _statistics_folder(matrices: Matrices, paths, resume, stack):
    """Where statistics are kept: to resume, or for as long as they are used if they are large."""
    if resume is not None:
        return files.at(resume) / "calibration"
    numbers = {path: (*matrices.all_sizes[path], matrices.num_matrices(path)) for path in paths}
    # float32: covariances (in, in) of the inputs and curvatures (out, out) of the outputs.
    if 4 * sum(n * (i**2 + o**2) for i, o, n in numbers.values()) < _LARGE_STATISTICS:
        return None
    return stack.enter_context(tempfile.TemporaryDirectory(prefix="mpojax-statistics-"))


def _report(
    matrices: Matrices, compressed: nnx.Module, paths, rows, spectra, choice=None, notes=()
) -> CompressionReport:
    """The report of a model whose matrices of `paths` have rows, or else were left dense."""
    chains = {row.path for row in rows}
    return CompressionReport(
        rows=tuple(rows),
        spectra=spectra,
        dense_parameters=matrices.num_dense_parameters,
        parameters=matrices_of(compressed).num_parameters,
        kept_dense=tuple(path for path in paths if path not in chains),
        unmatched=tuple(p for p in matrices.all_sizes if p not in {*paths, *matrices.shapes}),
        choice=choice,
        notes=notes,
    )


# Token ids of a batch, where an array is cut into batches.
BATCH_TOKENS = 4096
# Tokens whose curvature is measured, at least; it costs three times a pass and needs fewer.
CURVATURE_TOKENS = 16_384
# Bytes of statistics that are kept in files instead of memory.
_LARGE_STATISTICS = 2**30


def matched(model: nnx.Module, rules: rules_lib.Rules | None = None) -> list[str]:
    """Paths of the matrices that rules match, maps of experts among them; None: of the layers."""
    matrices = matrices_of(model)
    rules = [rules_lib.Rule("layers")] if rules is None else rules
    more = {"named": matrices.named, "refused": {} if matrices.expert_sizes else matrices.refused}
    targets = rules_lib.resolve(rules, matrices.all_sizes, matrices.shapes, **more)
    return [target.path for target in targets]


def calibration_batches(texts) -> list[Mapping]:
    """Batches as a list; an array (N, length) of token ids is cut into batches of 4,096 tokens."""
    if not isinstance(texts, np.ndarray | jax.Array):
        return list(texts)
    texts = np.asarray(texts)
    if texts.ndim != 2 or not np.issubdtype(texts.dtype, np.integer):
        raise ValueError(
            f"calibration has shape {texts.shape} and dtype {texts.dtype}; it must be token ids "
            "(N, length), or a list of batches."
        )
    rows = max(BATCH_TOKENS // texts.shape[1], 1)
    return [{"input_ids": texts[i : i + rows]} for i in range(0, len(texts), rows)]


def check_rules(
    model: nnx.Module,
    rules: rules_lib.Rules | None = None,
    *,
    budget: float | int | None = None,
    bond: int | None = None,
    method: str | None = None,
    calibration: Calibration | None = None,
    batches: Sequence[Any] | None = None,
    allocation: str = "error",
) -> None:
    """Raises what `compress` would raise about these arguments, without any decomposition."""
    matrices = matrices_of(model)
    if method is None:
        _checked(matrices, rules, budget, bond, calibration, allocation)
        return
    checks.check_value("method", method, checks.one_of(*low_rank.METHODS))
    paths, _ = _matched_by_method(matrices, rules, budget, method)
    if calibration is not None:
        low_rank.check(method, matrices, paths, calibration, batches or ())


def _checked(
    matrices: Matrices, rules, budget, bond, calibration, allocation, with_experts: bool = False
) -> tuple[list[Target], int | None]:
    """What the rules match, and what a budget leaves for the matrices with open bonds."""
    if matrices.shares_parts:
        raise ValueError(
            "the layers share a part of their parameters, which no chain of a single matrix can "
            "keep; compress models.unshared(model), or merge(model) for a dense one."
        )
    if rules is None:
        rules = _default_rules(budget, bond, calibration)
    more = {"named": matrices.named, "refused": {} if with_experts else matrices.refused}
    sizes = matrices.all_sizes if with_experts else matrices.sizes
    targets = rules_lib.resolve(rules, sizes, matrices.shapes, bond, **more)
    parameter_budget = None
    if budget is not None:
        totals = matrices.num_parameters, matrices.num_dense_parameters
        numbers = {path: matrices.num_matrices(path) for path in matrices.expert_sizes}
        parameter_budget = allocation_lib.open_budget(targets, *totals, budget, bond, numbers)
    open_search = [t for t in targets if t.settings.search and t.settings.leaves_bonds_open]
    if open_search and parameter_budget is None:
        raise ValueError(
            f"{open_search[0].path}: search=True needs a size: give compress a budget, or the rule "
            "a rank: the search finds the best chain with as many parameters."
        )
    _check_calibration(targets, matrices, calibration, allocation, parameter_budget)
    return targets, parameter_budget


def _default_rules(budget, bond, calibration) -> rules_lib.Rules:
    """The matrices of the layers, by the outputs where they are known."""
    if budget is None and bond is None:
        raise ValueError(
            "compress without rules needs a size: budget=0.6 (a fraction of the parameters) or "
            "bond=64 (a cap for every bond). Chains at full bonds, which compute the same, are "
            'rules=[Rule("layers")].'
        )
    aware = {} if calibration is None else {"data_aware": True}
    return [rules_lib.Rule("layers", **aware)]


def _check_calibration(targets, matrices: Matrices, calibration, allocation, parameter_budget):
    checks.check_value("allocation", allocation, checks.one_of(*allocation_lib.ALLOCATIONS))
    aware, by_loss = [t for t in targets if t.settings.data_aware], allocation == "first_order"
    what = f"data_aware=True of {aware[0].path}" if aware else f"allocation={allocation!r}"
    checks.check_clashes(
        {
            f"{what} needs calibration=: collect it with compression.calibrate(model, batches)": (
                calibration is None and (aware or by_loss)
            ),
            "allocation='first_order' divides a budget; give one, or leave it out": (
                by_loss and parameter_budget is None
            ),
        }
    )
    if calibration is None:
        return
    calibration.check(matrices.of_paths([target.path for target in targets]))
    for target in aware:
        calibration.metric(target.path, target.settings.ridge)
    if by_loss:
        calibration.check_gradients([target.path for target in targets])
