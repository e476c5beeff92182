"""Progress of many runs, one after the other: a live table on a terminal, log lines elsewhere."""

import contextlib
import io
import shutil
import sys
import time
from collections.abc import Iterator, Mapping

import rich.box
import rich.console
import rich.live
import rich.table
import rich.text
from absl import logging

_STYLES = {"done": "green", "failed": "bold red", "running": "bold", "stopped": "yellow"}


class LiveTable:
    """States of all cells.

    Args:
      results: {name of a cell: result of an earlier start, or None}, in order.
    """

    def __init__(self, results: Mapping[str, Mapping | None]):
        self.names = list(results)
        self.states = {n: "open" if found is None else "done" for n, found in results.items()}
        self.metrics = {name: _metric(result) for name, result in results.items()}
        self.seconds: dict[str, float] = {}
        self._running: tuple[str, float] | None = None
        self._latest = 0  # index of the cell that was started last
        self._live: rich.live.Live | None = None

    @contextlib.contextmanager
    def shown(self, console: rich.console.Console | None = None) -> Iterator[None]:
        """Shows the table while the body runs, where there is a terminal.

        What cells print and log meanwhile appears as lines above the table: two live displays on
        one terminal would overwrite each other.
        """
        if console is None and not sys.stderr.isatty():
            yield
            return
        console = console or rich.console.Console(file=sys.stderr)
        handler = logging.get_absl_handler().python_handler
        stream = handler.stream
        self._live = rich.live.Live(
            get_renderable=self.table, console=console, refresh_per_second=1
        )
        above = _Above(console)
        with self._live, contextlib.redirect_stdout(above), contextlib.redirect_stderr(above):
            handler.stream = above
            try:
                yield
            finally:
                handler.stream = stream
                self._live = None

    def started(self, name: str) -> None:
        """A cell begins."""
        self.states[name] = "running"
        self._running = (name, time.perf_counter())
        self._latest = self.names.index(name)
        self._log(f"cell {self._latest + 1} of {len(self.names)}: {name}")

    def ended(self, name: str, result: Mapping | None, seconds: float, stopped: bool) -> None:
        """A cell has ended, with or without a result."""
        done = result is not None
        self.states[name] = "done" if done else "stopped" if stopped else "failed"
        self.metrics[name], self.seconds[name], self._running = _metric(result), seconds, None
        self._log(
            f"{name}: {self.states[name]} {self.metrics[name]}".rstrip()
            + f", {_duration(seconds)}; {self.progress()}"
        )

    def progress(self) -> str:
        """One line: how many cells are finished, and how long the others will take."""
        done = sum(state == "done" for state in self.states.values())
        failed = sum(state == "failed" for state in self.states.values())
        line = f"{done} of {len(self.names)} cells finished"
        line += f", {failed} failed" if failed else ""
        left = self.remaining_seconds()
        return line if left is None else f"{line}, about {_duration(left)} left"

    def remaining_seconds(self) -> float | None:
        """Estimate from the cells of this start; None before the first has ended, or at the end."""
        left = sum(state in ("open", "running") for state in self.states.values())
        times = [s for name, s in self.seconds.items() if self.states[name] == "done"]
        if not left or not times:
            return None
        elapsed = time.perf_counter() - self._running[1] if self._running else 0.0
        mean = sum(times) / len(times)
        return mean * left - min(elapsed, mean)

    def table(self) -> rich.table.Table:
        """The table as it is now; of long sweeps the rows around the running cell."""
        table = rich.table.Table(box=rich.box.SIMPLE_HEAD, title=self.progress(), pad_edge=False)
        table.add_column("cell", overflow="fold")
        table.add_column("state")
        table.add_column("metric", justify="right")
        table.add_column("time", justify="right")
        height = max(5, shutil.get_terminal_size((100, 40)).lines - 8)
        first = max(0, min(self._latest - height // 2, len(self.names) - height))
        for name in self.names[first : first + height]:
            state = self.states[name]
            seconds = self.seconds.get(name)
            if self._running and self._running[0] == name:
                seconds = time.perf_counter() - self._running[1]
            table.add_row(
                rich.text.Text(name),
                rich.text.Text(state, style=_STYLES.get(state, "dim")),
                self.metrics[name],
                "" if seconds is None else _duration(seconds),
            )
        if len(self.names) > height:
            table.caption = f"rows {first + 1} to {first + height} of {len(self.names)}"
        return table

    def _log(self, line: str) -> None:
        if self._live is None:
            logging.info("%s", line)


class _Above(io.TextIOBase):
    """A stream whose lines appear above a live display; it says that it is no terminal."""

    def __init__(self, console: rich.console.Console):
        self._console, self._rest = console, ""

    def isatty(self) -> bool:
        return False

    def write(self, text: str) -> int:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._console.print(rich.text.Text.from_ansi(line), soft_wrap=True)
        return len(text)


def _metric(result: Mapping | None) -> str:
    if not result or not isinstance(result.get("metric"), int | float):
        return ""
    return f"{result.get('metric_name', 'metric')} {result['metric']:.4f}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
