"""What every entry point shares: flags, logging, one clear line for a user's mistake."""

import sys
from collections.abc import Callable

import ml_collections
from absl import app, flags, logging
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file, e.g. configs/quickstart.py or configs/quickstart.py:smoke."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of this run; resumed if it holds this run.")


# Libraries that log every internal step at the level of our own messages.
_VERBOSE = ("/orbax/", "/grain/", "/tensorstore/", "/jax/_src/")


def _quiet_libraries() -> None:
    logging.use_absl_handler()
    logging.set_verbosity(max(logging.get_verbosity(), logging.INFO))
    logging.get_absl_handler().addFilter(
        lambda record: (
            record.levelno > logging.converter.STANDARD_INFO
            or not any(part in record.pathname for part in _VERBOSE)
        )
    )


def run(main: Callable[[ml_collections.ConfigDict, str], int | None]) -> None:
    """Parses the flags and calls main(config, workdir); its result is the exit status.

    Failures that the library explains (ValueError, OSError, a missing extra, a loss that is not
    finite) end with their message and status 2 instead of a traceback; `-v=1` shows that too.
    """
    flags.mark_flags_as_required(["config", "workdir"])

    def wrapped(argv):
        if len(argv) > 1:
            raise app.UsageError(f"unexpected arguments {argv[1:]}; options start with --")
        _quiet_libraries()
        try:
            status = main(_CONFIG.value, _WORKDIR.value)
        except (ValueError, OSError, ImportError, FloatingPointError) as error:
            if logging.get_verbosity() >= logging.DEBUG:
                raise
            print(f"error: {error}", file=sys.stderr)
            status = 2
        sys.exit(status or 0)

    app.run(wrapped)
