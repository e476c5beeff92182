"""The page that `--help` prints: what an entry point does, its flags, the fields of its config."""

import ast
import dataclasses
import inspect
import io
import pathlib
import re
import shutil
import sys
import textwrap
import tokenize
from collections.abc import Callable, Iterator, Mapping, Sequence
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
    "warmups": "of the runs, in steps",
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
    """Lines about every field: its value, what it is, what is allowed."""
    file = file.expanduser().resolve()
    known = explanations(config, file)
    order = {name.partition(".")[0]: -index for index, name in enumerate(reversed(comments(file)))}
    leaves = list(config_fields.leaves(config))
    leaves.sort(key=lambda leaf: order.get(leaf[0].removeprefix("cell.").partition(".")[0], 1))
    explained = set()
    for name, value in leaves:
        allowed = config_fields.allowed(name, is_sweep="cell" in config)
        # What many variants have is explained at the first of them.
        text = "" if _general(name) in explained else known(name)
        explained.add(_general(name))
        texts = [text, f"[{allowed.what}]" if allowed else ""]
        yield from _row(f"  {name}={checks.shortened(value, 60)}", " ".join(filter(None, texts)))


def explanations(config: Mapping[str, Any], file: pathlib.Path) -> Callable[[str], str]:
    """Field -> what it is: by the comments of its config file, else by docstrings; "": unknown."""
    found = comments(file)
    known = described(config) | {name: text for name, text in found.items() if text}
    return lambda name: known.get(_general(name), "")


def _general(name: str) -> str:
    """What a field is known by: without the name of a variant, a role or a task."""
    name = re.sub(r"^variants\.[^.]+\.", "variants.NAME.", name)
    of_a_run = re.sub(r"^(cell|baselines\.[^.]+)\.", "", name)
    return re.sub(r"(?<=role_learning_rates)\..*|(?<=metrics)\..*", "", of_a_run)


def described(config: Mapping[str, Any]) -> dict[str, str]:
    """{field: what the docstring of its dataclass says}, of a run or of the cells of a sweep."""
    found = dict(_AXES) if "cell" in config else {}
    kinds = list(_SETTINGS)
    if "variants" in config:
        from experiments.variants import Variant  # with tables and figures: a second more

        kinds.append(("variants.NAME.", Variant))
    config = config.get("cell", config)
    if "corpus" in config:
        kinds.append(("", options.Pretraining))
    if config.get("method") in protocol.METHODS:
        method = protocol.find(config["method"])
        kinds.append((method.section and f"{method.section}.", method.Settings))
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


def comments(file: pathlib.Path, prefix: str = "") -> dict[str, str]:
    """{field: comment} of a config file: what stands above or behind the field's default.

    In the order of the files. Where it builds on other files of `configs/`, theirs count first: a
    field is explained where it is made.
    """
    source = file.read_text(encoding="utf-8")
    tree, remarks = ast.parse(source), _Remarks(source)
    found = {}
    for path in _imported(tree):
        found |= comments(path)
    for node in ast.walk(tree):
        for name, lines in _defaults(node):
            found[prefix + name] = found.get(prefix + name) or remarks.about(lines)
    if not prefix:
        shared = comments(pathlib.Path(optimizer.__file__), "optimizer.")
        found |= {name: found.get(name) or text for name, text in shared.items()}
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
    parts = []
    while isinstance(target, ast.Attribute):
        parts.append(target.attr)
        target = target.value
    return ".".join(reversed(parts)) if isinstance(target, ast.Name) else ""


def _entries(node: ast.AST, prefix: str) -> Iterator[tuple[str, tuple[int, int]]]:
    if isinstance(node, ast.BinOp):  # {...} | {...}
        yield from _entries(node.left, prefix)
        yield from _entries(node.right, prefix)
    if not isinstance(node, ast.Dict):
        return
    for key, value in zip(node.keys, node.values, strict=True):
        if isinstance(key, ast.Constant) and isinstance(key.value, str):
            yield prefix + key.value, (key.lineno, value.end_lineno)
            yield from _entries(value, f"{prefix}{key.value}.")


def _imported(tree: ast.AST) -> Iterator[pathlib.Path]:
    """Files of `configs/` that a config file imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("configs"):
            for name in (node.module, *(f"{node.module}.{alias.name}" for alias in node.names)):
                path = _ROOT.joinpath(*name.split(".")).with_suffix(".py")
                if path.is_file():
                    yield path
