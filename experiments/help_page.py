"""The page that `--help` prints: what an entry point does, its flags, the fields of its config."""

import ast
import contextlib
import dataclasses
import inspect
import io
import pathlib
import re
import shutil
import sys
import textwrap
import tokenize
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ml_collections
from absl import flags

import configs
from experiments import config_fields
from mpojax import checks, compression, data, models, nn
from mpojax.methods import opdf, options, protocol, t_few
from mpojax.methods.mpoe import gradient_mask
from mpojax.training import optimizer

FLAGS = ("--help", "-help", "-h", "-?", "--helpshort", "-helpshort", "--help_config")
_ROOT = pathlib.Path(configs.__file__).parents[1]
# First on the page, with what stands behind their `=`.
_FIRST = {"config": "FILE[:ARGUMENT]", "workdir": "FOLDER"}
_COLUMN = 36
_OPTIMIZERS = pathlib.Path(optimizer.__file__)
# Fields of configs, by what they begin with -> dataclasses whose docstrings explain them.
_SETTINGS = (
    *(("", each.type) for each in dataclasses.fields(options.Options)),
    ("", options.Generation),
    ("experts.", nn.ExpertSettings),
    ("experts.", compression.ExpertRule),
    ("sampling.", models.Sampling),
    ("masking.", data.Masking),
    ("choices.", t_few.ChoiceSettings),
    ("opdf.", opdf.OPDFSettings),
    ("optimizer.central_mask.", gradient_mask.GradientMask),
    ("variants.NAME.settings.", compression.MatrixRule),
)
# Of the configs of sweeps.
_AXES = {
    "axes": "(name, values) pairs: every combination is a run; see experiments.cells.expand",
    "skip": "dicts {axis: label or labels}: combinations that are left out",
    "baselines": "{label: fields} of runs that know no axis, such as the dense model",
    "repeats": "axes over which means and standard deviations are taken",
    "plots": "fields of experiments.render.figures.Plot, for each figure",
    "seeds": "of the runs",
    "draws": "of the few-shot examples",
    "shots": "examples of every class",
    "tasks": "of the runs",
    "caps": "of the bonds",
    "depths": "numbers of layers",
    "learning_rates": "of the runs",
    "weight_decays": "of the runs",
    "warmups": "of the runs, in steps; below 1: a fraction of all",
}


def page(source: str | None, config: ml_collections.ConfigDict | None) -> str:
    """The page of the running entry point.

    Args:
      source: `FILE` or `FILE:ARGUMENT` of `--config`, None where it is not given.
      config: what it gives, with the values of the command line.
    """
    parts = [(sys.modules["__main__"].__doc__ or "").strip(), "\n".join(_flags())]
    if config is not None:
        parts.append("\n".join([f"Fields of {source}, set by --config.FIELD=VALUE:", ""]))
        parts[-1] += "\n" + "\n".join(fields(config, pathlib.Path(source.partition(":")[0])))
    elif "config" in flags.FLAGS:
        parts.append("The fields of a config file are listed by --help --config=FILE.")
    return "\n\n".join(parts) + "\n"


def fields(config: ml_collections.ConfigDict, file: pathlib.Path) -> Iterator[str]:
    """Lines about every field."""
    for left, right in entries(config, file.expanduser().resolve()):
        yield from _row(f"  {left}", right)


def entries(config: ml_collections.ConfigDict, file: pathlib.Path) -> Iterator[tuple[str, str]]:
    """(field=value, what it is and what is allowed), groups before their fields; as in the files.

    The runs of a study or sweep come last. What many variants have, the first explains.
    """
    known, order = explanations(config, file), {}
    for name in comments(*files(file)):
        name = name.removeprefix("cell.")
        for each in (name.partition(".")[0], name):
            order.setdefault(each, len(order))

    def place(leaf: tuple[str, Any]) -> tuple[bool, int, int]:
        name = leaf[0].removeprefix("cell.")
        places = (order.get(each, len(order)) for each in (name.partition(".")[0], name))
        return leaf[0] != name, *places

    told = set()
    for name, value in sorted(config_fields.leaves(config), key=place):
        general, group = _general(name), name.rpartition(".")[0]
        if group.startswith("variants."):
            group = "variants"
        if group not in told and known.get(group):
            yield f"{group}.*", known[group]
        text = "" if group == "variants" and general in told else known.get(general, "")
        told |= {group, general}
        allowed = config_fields.allowed(name, is_sweep="axes" in config)
        texts = [text, f"[{allowed.what}]" if allowed else ""]
        yield f"{name}={checks.shortened(value, 60)}", " ".join(filter(None, texts))


def explanations(config: Mapping[str, Any], file: pathlib.Path) -> dict[str, str]:
    """{field: what it is}: the comments of its config files, else docstrings and `_AXES`."""
    if "cell" not in config:
        return described(config) | _told(comments(*files(file)))
    own = {path: comments(path) for path in files(file)}
    studies = [path for path in own if own[path].keys() & {"cell", "variants", "axes"}]
    run = described(config["cell"]) | _told(comments(*[p for p in own if p not in studies]))
    of_cells = {f"cell.{name}": text for name, text in run.items()}
    return described(config) | of_cells | _AXES | _told(comments(*studies))


def _told(found: Mapping[str, str]) -> dict[str, str]:
    return {name: text for name, text in found.items() if text}


def _general(name: str) -> str:
    """What a field is known by: without the name of a variant, a role or a task."""
    name = re.sub(r"^variants\.[^.]+\.", "variants.NAME.", name)
    of_a_run = re.sub(r"^baselines\.[^.]+\.", "cell.", name)
    return re.sub(r"(?<=role_learning_rates)\..*|(?<=metrics)\..*", "", of_a_run)


def described(config: Mapping[str, Any]) -> dict[str, str]:
    """{field: what the docstring of its dataclass says}, of a run or of a study of variants."""
    kinds = list(_SETTINGS)
    if "variants" in config:
        from experiments.variants import Variant  # with tables and figures: a second more

        kinds.append(("variants.NAME.", Variant))
    if "corpus" in config:
        kinds.insert(0, ("", options.Pretraining))
    if config.get("method"):
        with contextlib.suppress(ValueError):  # of a mistyped name
            method = protocol.find(config["method"])
            kinds.append((method.section and f"{method.section}.", method.Settings))
    found = {}
    for prefix, kind in kinds:
        found |= {name: text for name, text in _attributes(kind, prefix) if name not in found}
    return found


def _attributes(kind: type | None, prefix: str) -> Iterator[tuple[str, str]]:
    """(field, text) of the attributes in the docstring of a dataclass, and of those it is made of.

    One text may be about several: `beta1, beta2: ...`.
    """
    if kind is None:
        return
    _, _, section = inspect.getdoc(kind).partition("Attributes:\n")
    for names, text in re.findall(
        r"^  ([\w, ]+): ((?:.+\n?)(?:    .+\n?)*)", section, re.MULTILINE
    ):
        yield from ((prefix + name, " ".join(text.split())) for name in names.split(", "))
    for each in dataclasses.fields(kind):
        if dataclasses.is_dataclass(each.default):
            yield from _attributes(type(each.default), f"{prefix}{each.name}.")


def _flags() -> Iterator[str]:
    """Lines about the project's own flags; those of libraries are on absl's page."""
    known = flags.FLAGS
    yield "Flags:"
    yield ""
    names = [name for name in _FIRST if name in known]
    names += [flag.name for flag in _own_flags() if flag.name not in names]
    for name in names:
        flag = known[name]
        value = "" if flag.boolean else "=" + _FIRST.get(name, "...")
        default = "" if flag.default in (None, False, "") else f" Default: {flag.default}."
        yield from _row(f"  --{name}{value}", f"{flag.help}{default}")
    yield from _row("  -v=1", "Show the traceback of a mistake, too.")
    yield from _row("  --helpfull", "All flags, those of libraries, too.")


def _own_flags() -> Iterator[flags.Flag]:
    modules = flags.FLAGS.flags_by_module_dict()
    main = [name for name in modules if name in ("__main__", sys.argv[0])]
    shared = [name for name in modules if name.startswith(("experiments.", "tools."))]
    for module in dict.fromkeys(main + shared):
        yield from modules[module]


def _row(left: str, right: str) -> Sequence[str]:
    """One entry: its name at the left, wrapped text at the right."""
    width = max(80, min(120, shutil.get_terminal_size((100, 24)).columns))
    indent = " " * _COLUMN
    lines = textwrap.wrap(right, width - _COLUMN, break_long_words=False, break_on_hyphens=False)
    lines = [indent + line for line in lines]
    if lines and len(left) < _COLUMN - 1:
        return [left.ljust(_COLUMN) + lines[0].strip(), *lines[1:]]
    return [left, *lines]


def files(file: pathlib.Path) -> list[pathlib.Path]:
    """A config file and those of `configs/` that it builds on; a field is made in the first."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    below = [each for path in _imported(tree) for each in files(path)]
    return list(dict.fromkeys([*below, file]))


def comments(*paths: pathlib.Path) -> dict[str, str]:
    """{field: comment} of config files: what stands above or behind the field's default.

    In the order of the files, whose first counts; the keys of optimizers behind them.
    """
    found = {}
    for path, prefix in (*((path, "") for path in paths), (_OPTIMIZERS, "optimizer.")):
        source = path.read_text(encoding="utf-8")
        remarks = _Remarks(source)
        for node in ast.walk(ast.parse(source)):
            for name, lines in _defaults(node):
                found[prefix + name] = found.get(prefix + name) or remarks.about(lines)
    return found


class _Remarks:
    """Comments of a file, by line."""

    def __init__(self, source: str):
        self._behind, self._alone = {}, {}
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            if token.type == tokenize.COMMENT and "noqa" not in token.string:
                lines = self._alone if token.line.lstrip().startswith("#") else self._behind
                lines[token.start[0]] = token.string.lstrip("#").strip()

    def about(self, lines: tuple[int, int]) -> str:
        """The comment above the first, and behind the last or the first, of some lines."""
        first, last = lines
        above = first
        while above - 1 in self._alone:
            above -= 1
        texts = [self._alone[line] for line in range(above, first)]
        behind = self._behind.get(last) or self._behind.get(first, "")
        return " ".join([*texts, behind]).strip()


def _defaults(node: ast.AST) -> Iterator[tuple[str, tuple[int, int]]]:
    """(field, lines) of `config.FIELD = VALUE`, entries of dicts included."""
    if isinstance(node, ast.Assign):
        for target in node.targets:
            for each in target.elts if isinstance(target, ast.Tuple) else [target]:
                if name := _field(each):
                    yield name, (node.lineno, node.end_lineno)
                    yield from _entries(node.value, f"{name}.")
    if isinstance(node, ast.FunctionDef) and node.name == "default_config":
        for each in ast.walk(node):
            yield from _entries(each, "")


def _field(target: ast.AST) -> str:
    """`x.y` of a target `config.x.y`; `cell.x` of `cell.x`, the config of a sweep's runs."""
    parts = ast.unparse(target).split(".") if isinstance(target, ast.Attribute) else [""]
    return ".".join(parts if parts[0] == "cell" else parts[1:])


def _entries(node: ast.AST, prefix: str) -> Iterator[tuple[str, tuple[int, int]]]:
    if isinstance(node, ast.BinOp):  # {...} | {...}
        yield from _entries(node.left, prefix)
        yield from _entries(node.right, prefix)
    if not isinstance(node, ast.Dict):
        return
    for key, value in zip(node.keys, node.values, strict=True):
        if isinstance(key, ast.Constant) and isinstance(key.value, str):
            # A comment behind a dict of one line is about the whole.
            is_one_line = node.lineno == node.end_lineno
            yield prefix + key.value, (0, 0) if is_one_line else (key.lineno, value.end_lineno)
            yield from _entries(value, f"{prefix}{key.value}.")


def _imported(tree: ast.AST) -> Iterator[pathlib.Path]:
    """Files of `configs/` that a config file imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("configs"):
            for name in (node.module, *(f"{node.module}.{alias.name}" for alias in node.names)):
                path = _ROOT.joinpath(*name.split(".")).with_suffix(".py")
                if path.is_file():
                    yield path
