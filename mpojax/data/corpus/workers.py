"""Worker processes that report how far they are, and that never outlive their parent."""

import concurrent.futures
import concurrent.futures.process
import contextlib
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence

from mpojax import checks

# (done, total), in units of the caller's choice.
Advance = Callable[[int, int], None]

_counter = None  # of this process: `add` adds to it


def add(amount: int) -> None:
    """Called by a job, in whichever process it runs: so much of the work is done."""
    if _counter is not None:
        _counter.add(amount)


class Workers:
    """Runs jobs in processes, or with one worker right here. Use it in a `with` statement."""

    def __init__(self, count: int):
        checks.check_value("workers", count, checks.integer(1))
        self._count = count
        self._executor = None

    def __enter__(self) -> "Workers":
        global _counter
        if self._count == 1:
            _counter = _Counter()
            return self
        # Not fork: this process may have threads, those of JAX among them.
        context = multiprocessing.get_context("spawn")
        _counter = _SharedCounter(context.Value("q", 0))  # int64
        self._executor = concurrent.futures.ProcessPoolExecutor(
            self._count, context, initializer=_start, initargs=(_counter,)
        )
        return self

    def __exit__(self, *error) -> None:
        global _counter
        _counter = None
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)

    def map(
        self, function: Callable, jobs: Sequence[tuple], total: int, advance: Advance
    ) -> Iterator:
        """Results of function(*job), in the order of the jobs.

        Args:
          function: of a module, so that a process can find it.
          total: sum of what the jobs `add`.

        Raises:
          ChildProcessError: a worker process was killed.
          whatever a job raises.
        """
        _counter.reset()
        if self._executor is None:
            _counter.listener = lambda done: advance(done, total)
            for job in jobs:
                yield function(*job)
        else:
            yield from self._map(function, jobs, total, advance)
        if jobs:
            advance(total, total)

    def _map(self, function, jobs, total, advance) -> Iterator:
        futures = [self._executor.submit(function, *job) for job in jobs]
        try:
            for future in futures:
                # Progress is told twice a second while the next result in order is missing.
                while not concurrent.futures.wait([future], timeout=0.5).done:
                    advance(_counter.value(), total)
                yield future.result()
        except concurrent.futures.process.BrokenProcessPool as error:
            raise ChildProcessError(
                "a worker process was killed, perhaps for its memory: start the same command "
                "again, with fewer workers; finished work is kept"
            ) from error
        finally:
            for future in futures:
                future.cancel()


class _Counter:
    """Counts in one process, and tells a listener."""

    def __init__(self):
        self.reset()

    def reset(self) -> None:
        self._done, self.listener = 0, lambda done: None

    def add(self, amount: int) -> None:
        self._done += amount
        self.listener(self._done)


class _SharedCounter:
    """Counts over all processes."""

    def __init__(self, shared):
        self._shared = shared

    def reset(self) -> None:
        with self._shared.get_lock():
            self._shared.value = 0

    def add(self, amount: int) -> None:
        with self._shared.get_lock():
            self._shared.value += amount

    def value(self) -> int:
        return self._shared.value


def _start(counter: _SharedCounter) -> None:
    """First thing in a worker process."""
    global _counter
    _counter = counter
    # One process per core is enough; set before the tokenizers library starts its threads.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    # A parent that is killed cannot end its workers, which would wait for work forever.
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    with contextlib.suppress(Exception):
        multiprocessing.parent_process().join()
    os._exit(1)
