"""Metrics of a run: JSON lines for programs and tables, TensorBoard events for plots."""

import contextlib
import json
import math
import os
import pathlib
import platform
import time
from collections.abc import Iterable, Mapping
from typing import Any

import jax

from mpojax import files

_FLUSH_SECONDS = 30.0


class MetricsWriter:
    """Appends metrics to `metrics.jsonl` and TensorBoard events; only process 0 writes.

    Args:
      folder: the run's folder.
      resume_step: lines and events of later steps are dropped, because the resumed run writes them
        again.

    Raises:
      OSError: also when writing: it cannot be written; names the file and what to do.
      ValueError: `metrics.jsonl` is a link.
    """

    def __init__(self, folder: str | pathlib.Path, resume_step: int = 0):
        self.path = files.at(folder) / "metrics.jsonl"
        self._lines = self._events = None
        if jax.process_index() != 0:
            return
        try:
            self._lines = JsonLines(self.path, resume_step)
            self._events = _Events(self.path.parent / "tensorboard")
            self._events.start(resume_step + 1)
        except (OSError, ValueError):
            self.close()
            raise

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes scalars of one step; NaN and infinities become null in the JSON."""
        if self._lines is None:
            return
        numbers = {name: float(value) for name, value in values.items()}
        safe = {name: x if math.isfinite(x) else None for name, x in numbers.items()}
        self._lines.write({"step": step} | safe)
        self._events.write(step, numbers)

    def flush(self) -> None:
        """Sees to it that all that was written would outlive this process."""
        if self._lines is not None:
            self._lines.flush()
            self._events.flush()

    def close(self) -> None:
        lines, events, self._lines, self._events = self._lines, self._events, None, None
        if lines is not None:
            lines.close()
        if events is not None:
            events.close()

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *unused) -> None:
        self.close()


class JsonLines:
    """Appends JSON objects to a file, a line each; a killed run keeps its lines.

    Args:
      path: see `read`.
      resume_step: lines of later steps are dropped.
    """

    def __init__(self, path: pathlib.Path, resume_step: int):
        self.path = path
        drop_after(path, resume_step)
        with files.explained(path):
            self._file = files.open_append(path)

    def write(self, line: Mapping[str, Any]) -> None:
        left = memoryview((json.dumps(line) + "\n").encode("utf-8"))
        with files.explained(self.path):
            while left:
                # The file is not buffered: a write may take a part of the line.
                left = left[self._file.write(left) :]

    def flush(self) -> None:
        with files.explained(self.path):
            self._file.flush()

    def close(self) -> None:
        with files.explained(self.path):
            self._file.close()


class _StoreWriters:
    """How tensorboardX opens files of events on a store."""

    open = staticmethod(files.open_append)


class _Events:
    """TensorBoard events of a run.

    Written by the caller itself: tensorboardX's `SummaryWriter` does it in a thread, where an error
    such as a full disk ends in a traceback of that thread, and the run goes on without it.
    """

    def __init__(self, folder: pathlib.Path):
        # Imported at the first use: it imports torch, too, where that is installed.
        from tensorboardX import record_writer, summary
        from tensorboardX.proto import event_pb2

        self._proto, self._scalar = event_pb2, summary.scalar
        self._folder, self._is_broken, self._flushed = folder, False, 0.0
        name = f"events.out.tfevents.{int(time.time()):010d}.{platform.node()}.{os.getpid()}"
        with files.explained(folder):
            folder.mkdir(parents=True, exist_ok=True)
            files.write_atomic(folder / name, b"")  # in place of a link, which the writer follows
            if files.is_remote(folder):  # else by tensorboardX's own clients, set up otherwise
                from mpojax import stores

                for scheme in stores.SCHEMES:
                    record_writer.register_writer_factory(scheme, _StoreWriters)
            self._writer = record_writer.RecordWriter(str(folder / name))

    def start(self, step: int) -> None:
        """Begins the file; TensorBoard forgets what earlier starts wrote from this step on."""
        now, proto = time.time(), self._proto
        log = proto.SessionLog(status=proto.SessionLog.START)
        version = proto.Event(wall_time=now, file_version="brain.Event:2")
        self._write([version, proto.Event(wall_time=now, step=step, session_log=log)])

    def write(self, step: int, values: Mapping[str, float]) -> None:
        now = time.time()
        self._write(
            self._proto.Event(wall_time=now, step=step, summary=self._scalar(name, value))
            for name, value in values.items()
        )

    def flush(self) -> None:
        with files.explained(self._folder):
            self._writer.flush()

    def close(self) -> None:
        if self._is_broken:  # the error was raised; what is left in the buffer raises it again
            with contextlib.suppress(OSError):
                self._writer.close()
        else:
            with files.explained(self._folder):
                self._writer.close()

    def _write(self, events: Iterable[Any]) -> None:
        self._is_broken = True
        with files.explained(self._folder):
            for event in events:
                self._writer.write(event.SerializeToString())
            if (now := time.monotonic()) - self._flushed > _FLUSH_SECONDS:
                self._writer.flush()
                self._flushed = now
        self._is_broken = False


def read(path: str | pathlib.Path) -> list[dict]:
    """Lines of a metrics file; a last line cut short by a kill is left out."""
    path = files.at(path)
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    try:
        # After the last newline stands nothing, or a line that was never finished.
        return [json.loads(line) for line in lines[:-1]]
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: a line is not valid JSON ({error}); remove it") from error


def drop_after(path: pathlib.Path, step: int) -> None:
    """Keeps only the lines up to a step."""
    if not path.is_file():
        return
    kept = [line for line in read(path) if line["step"] <= step]
    files.write_atomic(path, "".join(json.dumps(line) + "\n" for line in kept))
