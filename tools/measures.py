"""Prints measures of the code: size, guards, comments, callers, examples, the field's words.

    python -m tools.measures

Reads the files that git tracks; nothing is imported or run. Tests count only where it says so.
"""

import ast
import collections
import functools
import io
import pathlib
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterable, Iterator

from rich import console, table

ROOT = pathlib.Path(__file__).parents[1]
# Checks that `mpojax.checks` words in one place.
_HAND_WRITTEN = re.compile(
    r"must be one of|must lie in|must be an integer of at least|unknown (fields|keys|arguments)"
)
# Classes whose kind decides what a model is; switches on them belong into methods of theirs.
_KIND = re.compile(
    r"isinstance\([^()]*(config|model|encoder|decoder)[^()]*, [^()]*"
    r"(Config(?!Dict)|Model|Encoder|Decoder|Classifier|Extractor)"
)
# Functions that make a model or a layer dense again.
_DENSE_VERBS = re.compile(r"(un)?merged?|fold(_\w+)?|rebuil[dt]|densify|to_dense")
# {regular expression: what the field says instead}
WORDS = {
    r"word tables?": "token embedding",
    r"(drawn )?by lot\b|\blots\b": "random",
    r"kept keys": "KV cache",
    # The classes; a docstring may begin with the verb, or be about tables of results.
    r"\bTurns\(|\.Turns\b|wave_numbers": "rotary cos and sin, inv_freq",
    r"\bTower\(|\.Tower\b|\bTables\(|\.Tables\b": "stack, Embeddings",
    # Of attention: `memory=` of a reader of a corpus is a size in bytes.
    r"\bhas_memory\b|\bmemory_mask\b": "cross_attention, encoder_output",
    r"\bpartition\.place\(|\bdef place\(": "with_sharding_constraint",
    r"\bdrawn\b": "random, sampled",
    r"\brecomputed\b": "remat",
    r"\bfacts\b": "extra, metadata",
    r"\bbeside\b": "parallel",
    r"\broom\b": "parameter_budget",
    r"\bbanned\b": "excluded",
    r"\bharmless\b": "ignored_buffers",
    r"\bcarried\b": "copy_by_name, regauge_and_slice",
    r"\bgoes_on\b": "same_stack, reuse_head, not_finished",
    r"\b(def|class) Job\b|\bjobs\.Job\b|\bOutcome\b": "Setup, Result",
    r"how it ended|for people\b": "the exit status, human-readable",
    # In quotes it is a key of results of runs.
    r"(?<![\"'])\brungs?\b(?![\"'])|\bladder\b": "bond grid, allowed bonds",
    r"\bsurplus\b|\bmisshapen\b": "unexpected, shape mismatch",
    r"small updates": "adapters",
    r"single entries|whole groups": "unstructured, structured",
    r"\bmended\b|\bmends?\b": "fixed",
    r"\btaps?\b|\bsinks?\b|gradients that are none": "activation capture",
    r"(?<!standard )\bdeviation\b": "stddev",
}
# Fields of configs and files as earlier versions called them: tests say them to see that such files
# are read, and that a config that still has one is told the new name.
OLD_NAMES = {
    r"\blam\b|\bsides=|\.sides\b|\bunits=|\.units\b": (
        "alignment_weight, factor_overrides, num_inner_cores"
    ),
    r"\btaught_layers\b": "num_teacher_layers",
    r"\bstack_breaks\b": "scan_boundaries",
    r"config\.(accumulate|start_from|scored_by|fresh|texts|keep_layers|finalise|host)\b": (
        "grad_accum_steps, init_checkpoint, scoring_checkpoint, model_config, dataset, "
        "num_layers_kept, after_search, distillation"
    ),
}
# `"old": "new"` of the maps that such files are read by, and remarks about their formats.
_RENAMING = re.compile(r'"[\w.]+": "[\w.]+"|.*#.* (called \w+ before|older versions said)')


def main() -> int:
    """Prints all tables; returns the exit status."""
    texts = {path: path.read_text(encoding="utf-8") for path in tracked(".py", ".md")}
    code = {p: t for p, t in texts.items() if p.suffix == ".py" and not is_test(p)}
    shown = table.Table("measure", "value")
    for name, value in measures(code, texts):
        shown.add_row(name, value)
    words = table.Table("word", "say", "times", "files")
    for pattern, count, files in words_found(texts):
        words.add_row(pattern, (WORDS | OLD_NAMES)[pattern], str(count), str(files))
    output = console.Console(width=120, file=sys.stdout)
    output.print(shown, words)
    return 0


def tracked(*suffixes: str) -> list[pathlib.Path]:
    """The files of the repository with these suffixes."""
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, text=True, check=True
    )
    paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    return [path for path in paths if path.suffix in suffixes and path.is_file()]


def measures(code: dict[pathlib.Path, str], texts: dict[pathlib.Path, str]) -> Iterator[tuple]:
    """(name, value as text) of each measure."""
    trees = {path: ast.parse(text) for path, text in code.items()}
    lines = sum(text.count("\n") for text in code.values())
    yield "lines of Python outside tests", f"{lines:,}"
    yield "frames from the command line to the compiled step", str(frames())
    guards = sum(len(guard_lines(tree)) for tree in trees.values())
    yield "lines that raise, assert or guard", f"{guards:,} ({guards / lines:.1%})"
    blocks = sum(
        len(_HAND_WRITTEN.findall(raised_text(text, trees[path])))
        for path, text in code.items()
        if path.stem != "checks"
    )
    yield "checks worded by hand", str(blocks)
    switches = sum(len(_KIND.findall(text)) for text in code.values())
    yield "isinstance switches on the kind of a model or config", str(switches)
    defined = collections.Counter(name for tree in trees.values() for name in definitions(tree))
    yield "classes called Settings", str(defined["Settings"])
    yield "functions called prepare", str(defined["prepare"] + defined["_prepare"])
    verbs = sorted(name for name in defined if _DENSE_VERBS.fullmatch(name))
    yield "verbs for making dense", f"{len(verbs)} ({', '.join(verbs)})"
    yield "prefixes of three or more files of a folder", ", ".join(prefixes(code)) or "none"
    reads = [name for tree in trees.values() for name in config_reads(tree)]
    yield "fields of configs read one by one", f"{len(reads)} ({len(set(reads))} names)"
    names, unused = public_names(code, texts)
    yield "public names without a caller outside tests", f"{len(unused)} of {len(names)}"
    # A config is an address on the command line; __init__ and __main__ are where Python looks.
    short = [
        path
        for path, text in code.items()
        if text.count("\n") < 40
        and not path.stem.startswith("__")
        and path.relative_to(ROOT).parts[0] != "configs"
    ]
    yield "files under 40 lines", str(len(short))
    comments, examples = sum(map(count_comments, code.values())), 0
    yield "lines with a comment", f"{comments:,} ({comments / lines:.1%})"
    for tree in trees.values():
        examples += sum(">>>" in text for text in docstrings(tree))
    yield "docstrings with an example that is run", str(examples)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    yield "README", f"{readme.count(chr(10))} lines, {len(readme.encode()) / 1000:.1f} kB"


def frames() -> int:
    """Length of `FRAMES` of the test that compares them with those of a run."""
    test = ROOT / "tests" / "experiments" / "test_methods.py"
    for node in ast.parse(test.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "FRAMES":
            return len(ast.literal_eval(node.value))
    raise LookupError(f"{test} has no FRAMES")


@functools.cache
def _nodes(tree: ast.AST) -> tuple[ast.AST, ...]:
    """All nodes of a tree, which is walked once for all measures."""
    return tuple(ast.walk(tree))


@functools.cache
def guard_lines(tree: ast.AST) -> set[int]:
    """Lines of raise and assert statements, and of the conditions that lead to nothing else."""
    found: set[int] = set()
    for node in _nodes(tree):
        if isinstance(node, (ast.Raise, ast.Assert)):
            found |= set(range(node.lineno, node.end_lineno + 1))
        if isinstance(node, ast.If) and isinstance(node.body[-1], ast.Raise):
            found |= set(range(node.lineno, node.body[0].lineno))
    return found


def raised_text(text: str, tree: ast.AST) -> str:
    """The lines that `guard_lines` finds."""
    lines = text.splitlines()
    return "\n".join(lines[number - 1] for number in sorted(guard_lines(tree)))


def definitions(tree: ast.AST) -> Iterator[str]:
    """Names of all classes and functions but nested ones."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            yield node.name
        if isinstance(node, ast.ClassDef):
            yield from (each.name for each in node.body if isinstance(each, ast.FunctionDef))


def prefixes(paths: Iterable[pathlib.Path]) -> list[str]:
    """Folders and first words that three files or more begin with: sub-packages in all but name."""
    families = collections.Counter(
        path.parent.relative_to(ROOT) / path.stem.partition("_")[0]
        for path in paths
        if "_" in path.stem.strip("_")
    )
    return sorted(f"{family}_" for family, count in families.items() if count > 2)


def config_reads(tree: ast.AST) -> Iterator[str]:
    """Dotted names of what is read off a variable called config."""
    inner = {id(node.value) for node in _nodes(tree) if isinstance(node, ast.Attribute)}
    for node in _nodes(tree):
        if not isinstance(node, ast.Attribute) or not isinstance(node.ctx, ast.Load):
            continue
        if id(node) not in inner and _variable(node) == "config":
            yield ast.unparse(node)


def _variable(node: ast.AST) -> str:
    """What a chain of attributes, items and calls begins with."""
    while isinstance(node, ast.Attribute | ast.Subscript | ast.Call):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else ""


def public_names(
    code: dict[pathlib.Path, str], texts: dict[pathlib.Path, str]
) -> tuple[set[str], set[str]]:
    """Names that packages of mpojax export, and those that nothing but tests and they mention.

    What a public function returns is used.
    """
    names: set[str] = set()
    renamed: set[str] = set()
    defined: set[str] = set()  # in an __init__, which is not counted
    for path, text in code.items():
        if path.name == "__init__.py" and "mpojax" in path.parts:
            defined |= {
                node.targets[0].id
                for node in ast.parse(text).body
                if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
            }
            imports = [node for node in ast.parse(text).body if isinstance(node, ast.ImportFrom)]
            aliases = [alias for node in imports for alias in node.names]
            names |= {alias.asname or alias.name for alias in aliases}
            renamed |= {alias.asname for alias in aliases if alias.asname}
    counted: collections.Counter[str] = collections.Counter()
    for path, text in texts.items():
        if path.name != "__init__.py" and not is_test(path):
            counted.update(set(re.findall(r"\w+", text)) & names)
            counted.update(set(re.findall(r"\) -> (\w+)", text)) & names)
    # One file defines it, under this name.
    elsewhere = renamed | defined
    return names, {name for name in names if counted[name] < 2 - (name in elsewhere)}


def count_comments(text: str) -> int:
    """Lines with a comment."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return len({token.start[0] for token in tokens if token.type == tokenize.COMMENT})


def docstrings(tree: ast.AST) -> Iterator[str]:
    """All docstrings of a module."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    for node in _nodes(tree):
        if isinstance(node, kinds) and (text := ast.get_docstring(node)):
            yield text


def words_found(texts: dict[pathlib.Path, str]) -> Iterator[tuple[str, int, int]]:
    """(pattern, times, files) of each of `WORDS` and `OLD_NAMES` that is still in use."""
    # This file and its test say the words themselves.
    files = {p: _RENAMING.sub("", t) for p, t in texts.items() if "test_measures" not in p.stem}
    files.pop(pathlib.Path(__file__).resolve(), None)
    code = {p: t for p, t in files.items() if not is_test(p)}
    for pattern, searched in [*((p, files) for p in WORDS), *((p, code) for p in OLD_NAMES)]:
        counts = [len(re.findall(pattern, text)) for text in searched.values()]
        if any(counts):
            yield pattern, sum(counts), sum(map(bool, counts))


def is_test(path: pathlib.Path) -> bool:
    """Whether a file is of the tests."""
    parts: Iterable[str] = path.relative_to(ROOT).parts
    return "tests" in parts or path.name == "conftest.py"


if __name__ == "__main__":
    sys.exit(main())
