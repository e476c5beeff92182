"""Command lines: parsed, and what is wrong with one explained in a line.

`ml_collections` parses; where it fails, the command line is looked at again to say which field or
value is wrong, what is allowed, and what was probably meant.
"""

import contextlib
import dataclasses
import difflib
import importlib.util
import inspect
import pathlib
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

import ml_collections
from absl import app, flags, logging

from experiments import config_fields, help_page
from mpojax import checks
from mpojax.training import workdir

# What a field takes on the command line, by the type of its default.
_TYPES = {
    bool: "True or False",
    int: "an integer",
    float: "a number",
    str: "a text",
    tuple: "a tuple, such as 1,2 or \"('a.*', 'b')\" (with quotation marks round texts)",
    ml_collections.ConfigDict: "a mapping, such as \"{'name': 1}\"",
}

# Libraries that log every internal step at the level of our own messages.
_VERBOSE = ("/orbax/", "/grain/", "/tensorstore/", "/jax/_src/", "/fontTools/", "/torch/")
# Failures that are explained by their message.
_EXPLAINED = (ValueError, OSError, ImportError, FloatingPointError)


def run(main: Callable[[list[str]], int | None]) -> NoReturn:
    """Parses all flags and calls main(argv) within `explained`; its result is the exit status."""

    def work(argv: list[str]) -> NoReturn:
        with explained():
            sys.exit(main(argv) or 0)

    app.run(work, flags_parser=parse)


def settings(kind: type) -> Any:
    """The settings of a dataclass by the flags of its fields' names; absent flags: the defaults."""
    given = {field.name: flags.FLAGS[field.name].value for field in dataclasses.fields(kind)}
    return kind(**{name: value for name, value in given.items() if value is not None})


def main_of(kind: type, job: Callable[[Any, str], Any]) -> Callable[[list[str]], None]:
    """A main for `run` that does a job: job(settings by the flags, --workdir)."""

    def main(argv: list[str]) -> None:
        del argv
        quiet_libraries()
        job(settings(kind), flags.FLAGS.workdir)

    return main


def quiet_libraries() -> None:
    """Logs our own messages from INFO on, those of other libraries from WARNING on."""
    logging.use_absl_handler()
    logging.set_verbosity(max(logging.get_verbosity(), logging.INFO))
    logging.get_absl_handler().addFilter(_is_for_users)


def _is_for_users(record) -> bool:
    if not any(part in record.pathname for part in _VERBOSE):
        return True
    # Tracebacks of errors, such as a full disk in a thread that saves, which are raised as well.
    is_traceback = record.exc_info is not None and logging.get_verbosity() < logging.DEBUG
    return record.levelno > logging.converter.STANDARD_INFO and not is_traceback


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Ends the process with one message and status 2 after a failure that is explained.

    Such are a mistyped command line, a ValueError, an OSError, a missing extra, a loss that is not
    finite; `-v=1` shows the traceback, too.
    """
    try:
        yield
    except _EXPLAINED as error:
        if logging.get_verbosity() >= logging.DEBUG:
            raise
        refuse(str(error))


def parse(argv: Sequence[str]) -> list[str]:
    """Parses all flags, `--config` among them; returns what is left of `argv`.

    A mistake ends the process with one line on stderr and status 2; `--help`, with its page.
    """
    if set(argv[1:]) & set(help_page.FLAGS):
        _help([argument for argument in argv if argument not in help_page.FLAGS])
    try:
        rest = flags.FLAGS(argv)
        if len(rest) > 1:
            raise app.UsageError(f"unexpected argument {rest[1]!r}; options start with --")
        if _config_argument(argv) is not None:
            list(flags.FLAGS.config)  # a file that was not found shows only now
    except Exception as error:
        refuse(explain(argv, error))
    return rest


def _help(argv: Sequence[str]) -> NoReturn:
    source, config = _config_argument(argv), None
    if source is not None:
        parse(argv)
        config = flags.FLAGS.config
    print(help_page.page(source, config), end="")
    sys.exit(0)


def refuse(message: str) -> NoReturn:
    """Ends the process: one line on stderr, status 2."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def explain(argv: Sequence[str], error: Exception) -> str:
    """Explains what is wrong with a command line that could not be parsed."""
    text = _first_line(error)
    source = _config_argument(argv)
    missing = re.fullmatch(r"flag --(\w+)=None: Flag .* must have a value.*", text)
    if missing and missing.group(1) != "config":
        return f"--{missing.group(1)}=... is missing: {flags.FLAGS[missing.group(1)].help}"
    if isinstance(error, app.UsageError) or (
        isinstance(error, flags.UnrecognizedFlagError) and not error.flagname.startswith("config.")
    ):
        return text
    if source is None and "config" not in text:
        return text  # of a flag's own value
    if source is None:
        return "--config=FILE is missing, a config file such as configs/mpop/base.py"
    try:
        config = load_config(source)
        for override in _overrides(argv):
            _check_name(config, *override, source)
    except ValueError as found:
        return str(found)
    return _value_error(config, error)


def load_config(source: str) -> ml_collections.ConfigDict:
    """The config of `FILE` or `FILE:ARGUMENT`.

    Raises:
      ValueError: there is no such file, it is no config, or the argument is not one of its own.
    """
    file, colon, argument = source.partition(":")
    path = pathlib.Path(file)
    if not path.is_file():
        known = sorted(map(str, pathlib.Path("configs").rglob("*.py")))
        known = [name for name in known if not name.endswith("__init__.py")]
        close = difflib.get_close_matches(file, known, n=1, cutoff=0.5)
        hint = f", did you mean {close[0]}?" if close else ""
        raise ValueError(f"--config={source}: there is no file {file}{hint}")
    spec = importlib.util.spec_from_file_location("config_to_explain", path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        get_config = module.get_config
    except SyntaxError as error:
        raise ValueError(f"--config={file}, line {error.lineno}: {error.msg}") from error
    except AttributeError as error:
        raise ValueError(f"--config={file} has no function get_config ({error})") from error
    except Exception as error:
        raise ValueError(f"--config={file}: {_with_place(error)}") from error
    return _called(get_config, file, [argument] if colon else [])


def _called(get_config: Callable, file: str, arguments: list[str]) -> ml_collections.ConfigDict:
    try:
        inspect.signature(get_config).bind(*arguments)
    except TypeError as error:
        takes = "needs" if not arguments else "takes no"
        raise ValueError(
            f"--config={':'.join([file, *arguments])}: this config {takes} argument, as in "
            f"{file}{':ARGUMENT' if not arguments else ''}"
        ) from error
    try:
        config = get_config(*arguments)
    except ValueError as error:
        raise ValueError(f"--config={file}: {_first_line(error)}") from error
    except Exception as error:
        raise ValueError(f"--config={file}: {_with_place(error)}") from error
    if not isinstance(config, ml_collections.ConfigDict):
        raise ValueError(f"--config={file}: get_config must return a ConfigDict, not {config!r}")
    return config


def _config_argument(argv: Sequence[str]) -> str | None:
    """The value of `--config`, in either of the ways to give it."""
    for index, argument in enumerate(argv):
        if found := re.fullmatch(r"--?config=(.*)", argument, re.DOTALL):
            return found.group(1)
        if re.fullmatch(r"--?config", argument):
            return next(iter(argv[index + 1 :]), None)
    return None


def _overrides(argv: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """("" or "no", dotted field, value) of every `--config.FIELD=VALUE` and the like."""
    for argument, following in zip(argv, [*argv[1:], "--"], strict=True):
        if found := re.fullmatch(r"--?(no)?config\.([^=]*)(?:=(.*))?", argument, re.DOTALL):
            no, name, value = found.groups()
            if value is None and not following.startswith("-") and not no:
                value = following
            yield no or "", name, value or ""


def _check_name(
    config: ml_collections.ConfigDict, no: str, name: str, value: str, source: str
) -> None:
    """Raises ValueError for a field that the config does not have, naming the nearest."""
    given = value and f"={value}"
    holder: Any = config
    parts = name.split(".")
    for index, part in enumerate(parts):
        if isinstance(holder, ml_collections.ConfigDict) and part in holder:
            holder = holder[part]
            continue
        whole = ".".join(parts[:index])
        if isinstance(holder, ml_collections.ConfigDict) and not len(holder) and whole:
            rest = ".".join(parts[index:])
            raise ValueError(
                f"--config.{name}: {whole} is empty here and is given as a whole, such as "
                f"--config.{whole}=\"{{'{rest}': {value or '...'}}}\""
            )
        if now := workdir.RENAMED.get(name.removeprefix("cell.")):
            cell = "cell." if name.startswith("cell.") else ""
            raise ValueError(f"--config.{name} is called --{no}config.{cell}{now}{given} now")
        known = [leaf for leaf, _ in config_fields.leaves(config)]
        near = checks.nearest(name, known)
        hint = f", did you mean --{no}config.{near}{given}?" if near else f"; it has {_some(known)}"
        raise ValueError(f"--config.{name}: {source} has no such field{hint}")


def _value_error(config: ml_collections.ConfigDict, error: Exception) -> str:
    """About a value of the wrong type."""
    text = _first_line(error)
    found = re.search(r"config\.([\w.]+)=(.*?): ", text)
    if not found:
        return text
    *parents, last = found.group(1).split(".")
    for part in parents:
        config = config[part]
    allowed = _TYPES.get(config.get_type(last), "another value")
    default = config[last]
    example = f"; the default is {default!r}" if isinstance(default, (int, float, str)) else ""
    example = "; leave it out for the default, None" if default is None else example
    return f"--config.{found.group(1)}={found.group(2)[:80]} must be {allowed}{example}"


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _with_place(error: Exception) -> str:
    """Kind and text of an error in somebody's file, and the line that raised it."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    place = f" ({pathlib.Path(frame.filename).name}, line {frame.lineno})"
    return f"{type(error).__name__}: {_first_line(error)}{place}"


def _some(names: list[str]) -> str:
    return checks.listed(sorted({name.partition(".")[0] for name in names}), limit=40)
