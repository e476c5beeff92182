"""Claims on pieces of work in a folder that several machines share: each is done once.

A claim is a file `NAME.N`. The system lets one process alone create it; whoever has the highest N
holds the work. The holder touches its file now and then. A claim that nobody has touched for long
is dead, and is taken over by creating the next N: of several that try, one succeeds. Ages are told
by the clock of the folder's file system or object store, not by those of the machines, and before
a takeover a claim is watched for two beats of this machine's monotonic clock.
"""

import dataclasses
import glob
import os
import pathlib
import platform
import secrets
import threading
import time
from collections.abc import Callable

from absl import logging

from mpojax import files


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds of claims.

    Attributes:
      beat: between two touches.
      dead: without a touch after which a claim is taken over. Longer than a network file system
        shows old times of files (60 s for NFS).
    """

    beat: float = 15.0
    dead: float = 180.0


TIMING = Timing()


@dataclasses.dataclass(frozen=True)
class Held:
    """A claim of another process.

    Attributes:
      path: its file.
      holder: what that says of its holder.
      age: seconds since the last touch.
      touched: time of that by the clock of the folder.
    """

    path: pathlib.Path
    holder: str
    age: float
    touched: float

    def __str__(self) -> str:
        return f"{self.holder}, last sign {max(0.0, self.age):.0f} s ago"


class Claim:
    """A claim of this process, kept alive by a thread until `release`.

    Args:
      path: `NAME.N`, which exists.
      beat: see `Timing`.
      on_loss: called in the thread when another process has taken the claim over, which happens
        after a long sleep of this one. It must see to it that the work ends at once.
    """

    def __init__(self, path: pathlib.Path, beat: float, on_loss: Callable[[], object]):
        self.path, self._beat, self._on_loss = path, beat, on_loss
        self._released = threading.Event()
        threading.Thread(target=self._keep, daemon=True, name=f"claim {path.name}").start()

    def __enter__(self) -> "Claim":
        return self

    def __exit__(self, *unused) -> None:
        self.release()

    def is_held(self) -> bool:
        """True unless another process has taken the claim over, or removed it."""
        return (_latest(self.path.with_suffix("")) or (0, None))[1] == self.path

    def release(self) -> None:
        """Removes the claim, and dead ones before it."""
        self._released.set()
        if self.is_held():
            number = int(self.path.suffix[1:])
            for n in range(1, number + 1):  # its own last: until then it stands
                self.path.with_suffix(f".{n}").unlink(missing_ok=True)

    def _keep(self) -> None:
        while not self._released.wait(self._beat):
            try:
                if not self.is_held() and not self._released.is_set():
                    self._on_loss()
                    return
                files.renew(self.path)
            except OSError as error:  # of a network: maybe better at the next beat
                logging.warning("%s: no sign of life could be given (%s)", self.path, error)


def take(
    path: str | os.PathLike,
    timing: Timing = TIMING,
    on_loss: Callable[[], object] = lambda: os._exit(75),
) -> Claim | Held:
    """Claims a piece of work, or says who holds it.

    Whether the work has been done meanwhile is to be looked up after claiming it.

    Args:
      path: folder and name of the claim; the folder is made where it does not exist.
      on_loss: see `Claim`; by default the process ends at once, before it spoils what another one
        does now.

    Raises:
      ValueError: the clocks of the machines do not agree; says what to do.
      OSError: the folder cannot be written.
    """
    path = files.at(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        number, last = _latest(path) or (0, None)
        if last is not None and (held := _held(last, timing)) is not None:
            return held
        if last is not None and not last.exists():
            continue  # released meanwhile; claims are numbered from 1 again
        claim = path.with_name(f"{path.name}.{number + 1}")
        try:
            files.create(claim, f"process {os.getpid()} on {platform.node()}\n")
        except FileExistsError:
            continue  # another process was faster
        return Claim(claim, timing.beat, on_loss)


def wait(
    path: str | os.PathLike,
    timing: Timing = TIMING,
    on_loss: Callable[[], object] = lambda: os._exit(75),
) -> Claim | Held:
    """Claims a piece of work as `take` does, but waits for a claim that may be of a dead process.

    Returns:
      `Held` as soon as its holder gives a sign of life.
    """
    first = found = take(path, timing, on_loss)
    if isinstance(first, Held):
        logging.info("%s is held by %s: waiting to see whether it lives", first.path, first)
    while isinstance(found, Held) and (found.path, found.touched) == (first.path, first.touched):
        time.sleep(timing.beat)
        found = take(path, timing, on_loss)
    return found


def _latest(path: pathlib.Path) -> tuple[int, pathlib.Path] | None:
    """The claim with the highest number; None where there is none."""
    found = path.parent.glob(f"{glob.escape(path.name)}.*")
    # The glob also finds claims of names that go on with a dot: x.5.1 is of x.5.
    own = [each for each in found if each.stem == path.name and each.suffix[1:].isdigit()]
    numbered = [(int(each.suffix[1:]), each) for each in own]
    return max(numbered, default=None)


def _held(path: pathlib.Path, timing: Timing) -> Held | None:
    """The claim of a living process; None for a dead one, which is watched for two beats before."""
    try:
        touched, holder = path.stat().st_mtime, path.read_text(encoding="utf-8").strip()
    except FileNotFoundError:  # released just now
        return None
    holder, age = holder or "another process", _now(path.parent) - touched
    if age < -timing.dead:
        raise ValueError(_skewed(path, holder, f"was touched {-age:,.0f} s in the future"))
    if age < timing.dead:
        return Held(path, holder, age, touched)
    logging.info("%s: no sign of %s for %.0f s; watching it before taking over", path, holder, age)
    time.sleep(2 * timing.beat)
    touched_again = path.stat().st_mtime if path.exists() else touched
    if touched_again == touched:
        return None
    age = _now(path.parent) - touched_again
    if age < timing.dead:  # it had only hung
        return Held(path, holder, age, touched_again)
    raise ValueError(_skewed(path, holder, f"is alive, but its touches are {age:,.0f} s old"))


def _now(folder: pathlib.Path) -> float:
    """Time by the clock that dates the files of a folder."""
    probe = folder / f".now-{secrets.token_hex(8)}"
    probe.touch()
    try:
        return probe.stat().st_mtime
    finally:
        probe.unlink()


def _skewed(path: pathlib.Path, holder: str, what: str) -> str:
    return (
        f"{path} of {holder} {what}: the clocks of that machine and of {platform.node()} differ. "
        "Set both (NTP), or, if nothing runs there, remove this file; then start again."
    )
