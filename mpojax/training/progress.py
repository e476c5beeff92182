"""Progress of long work: a bar with remaining time on a terminal, log lines elsewhere."""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator

import jax
import rich.console
import rich.progress
from absl import logging

# (done, total, text): text is shown behind the bar, e.g. the current loss or path.
Advance = Callable[[int, int, str], None]


@contextlib.contextmanager
def progress(description: str, *, done: int = 0, every_seconds: float = 15.0) -> Iterator[Advance]:
    """Yields advance(done, total, text). Only process 0 shows anything.

    Args:
      description: what is going on, e.g. "dense, seed 0".
      done: what an earlier run had finished; left out of the estimate of the remaining time.
      every_seconds: between two log lines where there is no terminal.
    """
    if jax.process_index() != 0:
        yield lambda done, total, text: None
    elif sys.stderr.isatty():
        yield from _bar(description, done)
    else:
        yield lines(description, done=done, every_seconds=every_seconds)


@contextlib.contextmanager
def waiting(description: str, *, every_seconds: float = 15.0) -> Iterator[None]:
    """Logs now and then that something goes on which tells nothing meanwhile, such as compiling.

    Args:
      description: what is going on.
      every_seconds: between two lines, of process 0 alone.
    """
    if jax.process_index() != 0:
        yield
        return
    done, start = threading.Event(), time.perf_counter()

    def tell():
        while not done.wait(every_seconds):
            logging.info("%s: %.0f s so far", description, time.perf_counter() - start)

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield
    finally:
        done.set()
        teller.join()


def _bar(description: str, done: int) -> Iterator[Advance]:
    columns = [
        *rich.progress.Progress.get_default_columns(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TextColumn("{task.fields[text]}"),
    ]
    with rich.progress.Progress(*columns, console=rich.console.Console(stderr=True)) as bar:
        task = bar.add_task(description, total=None, completed=done, text="")
        yield lambda done, total, text: bar.update(task, completed=done, total=total, text=text)


def lines(
    description: str, *, done: int = 0, every_seconds: float = 15.0, at_end: bool = True
) -> Advance:
    """advance(done, total, text), which logs now and then; see `progress`.

    Args:
      at_end: also when all is done, however short it was.
    """
    first, start = done, time.perf_counter()
    last = start

    def advance(done: int, total: int, text: str) -> None:
        nonlocal last
        now = time.perf_counter()
        if now - last < every_seconds and not (at_end and done >= total):
            return
        last = now
        left = (now - start) / max(1, done - first) * (total - done)
        behind = f"{text}, " if text else ""
        logging.info("%s: %d of %d, %s%.0f s left", description, done, total, behind, left)

    return advance
