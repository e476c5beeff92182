"""Common parts of the entry points: flags, logging, one clear line for a user's mistake.

Several processes: see `experiments.processes`.
"""

import contextlib
import os
import pathlib
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator

import jax
import ml_collections
from absl import app, flags
from ml_collections import config_flags

from experiments import command_line, peers, processes
from mpojax import checks, files

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file, e.g. configs/NAME.py or configs/NAME.py:ARGUMENT."
)
_CACHE = flags.DEFINE_string(
    "compilation_cache",
    None,
    "Folder that keeps compiled programs for later runs on machines of this kind; it grows.",
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of this run; resumed if it holds this run.")


def _own_command(config: str) -> str:
    """The command in the docstring of a config file, as an end of a message; "": none."""
    text = pathlib.Path(config.partition(":")[0]).read_text(encoding="utf-8")
    found = re.search(r"python -m experiments\.\w+", text)
    return f"; run it by `{found[0]}`" if found else ""


def _keep_programs(folder: str) -> None:
    """Has jax keep compiled programs in a folder; by default as JAX_COMPILATION_CACHE_DIR says.

    There is no default folder: programs for CPUs are those of one processor's instructions, which a
    home that several machines share would mix, and jax never removes any.

    Raises:
      OSError: it cannot be made.
    """
    if not files.is_remote(folder):  # jax itself knows gs:// and the like
        path = files.at(folder).absolute()
        with files.explained(path):
            path.mkdir(parents=True, exist_ok=True)
        folder = str(path)
    jax.config.update("jax_compilation_cache_dir", folder)
    # A run compiles many small programs besides its step.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


@contextlib.contextmanager
def session(
    fields: Iterable[str] = (), needs_workdir: bool = True
) -> Iterator[tuple[ml_collections.ConfigDict, str | None]]:
    """(config, workdir) of the flags; all processes of a run are joined meanwhile.

    What the user can fix ends with one message and status 2: see `command_line.explained`.

    Args:
      fields: that a config of this entry point has.
    """
    try:
        with command_line.explained():
            if needs_workdir and not _WORKDIR.value:
                raise ValueError("--workdir=FOLDER is missing: the folder of this run")
            if missing := [name for name in fields if name not in _CONFIG.value]:
                name = flags.FLAGS["config"].config_filename
                raise ValueError(
                    f"--config={name} is of another entry point than {sys.argv[0]}: it lacks "
                    f"{checks.listed(missing, limit=5)}{_own_command(name)}"
                )
            command_line.quiet_libraries()
            if _CACHE.value:
                _keep_programs(_CACHE.value)
            processes.start()
            with peers.together():
                yield _CONFIG.value, _WORKDIR.value and os.fspath(files.at(_WORKDIR.value))
    except BaseException as error:
        if not processes.is_started():
            raise
        if not isinstance(error, SystemExit):
            traceback.print_exc()
        processes.leave(error.code if isinstance(error, SystemExit) else 1)


def run(
    main: Callable[[ml_collections.ConfigDict, str], int | None], fields: Iterable[str] = ()
) -> None:
    """Runs main(config, workdir) in a `session`; its result is the exit status."""

    def work(argv: list[str]) -> None:
        with session(fields) as given:
            if status := main(*given):
                sys.exit(status)

    flags.mark_flag_as_required("config")
    app.run(work, flags_parser=command_line.parse)
