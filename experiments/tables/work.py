"""Work that several processes share: what is not done is claimed, done once, and waited for."""

import dataclasses
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import logging

from mpojax import claims


@dataclasses.dataclass
class Work:
    """Pieces of work in a folder that several processes, maybe of several machines, share.

    Attributes:
      names: of the pieces, in order.
      folder: of the claims.
      run: does one piece; returns "done", "failed" or "stopped" (a signal asks to end).
      is_done: whether a piece is done, by whichever process.
      needs: {name: names of what must be done before}.
      poll: seconds between two looks at what others hold.
      say: seconds between two lines about it.
      failure: mark of the last failure of a piece, by whichever process (as the time of a file);
        None for none. A piece with another mark than at the start is not tried here, too.
    """

    names: Sequence[str]
    folder: pathlib.Path
    run: Callable[[str], str]
    is_done: Callable[[str], bool]
    needs: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    timing: claims.Timing = claims.TIMING
    poll: float = 5.0
    say: float = 15.0
    failure: Callable[[str], Any] = lambda name: None

    def share(self) -> dict[str, str] | None:
        """Does all that can be done, and waits for what others do.

        Returns:
          {name: "done", "failed" or "blocked" (it needs what is not done)}; None when stopped.

        Raises:
          ValueError: see `claims.take`.
        """
        states: dict[str, str] = {}
        before = {name: self.failure(name) for name in self.names}
        said = time.monotonic()
        while len(states) < len(self.names):
            waiting = {}
            for name in self.names:
                if name not in states:
                    state, holder = self._attempt(name, states, before)
                    if state == "stopped":
                        return None
                    (waiting if state == "waiting" else states)[name] = holder or state
            if waiting and time.monotonic() - said >= self.say:
                said, (name, holder) = time.monotonic(), next(iter(waiting.items()))
                logging.info("waiting for %d runs of others; %s: %s", len(waiting), name, holder)
            time.sleep(self.poll if waiting else 0)
        return states

    def _attempt(
        self, name: str, states: Mapping[str, str], before: Mapping[str, Any]
    ) -> tuple[str, str]:
        """(state of a piece after an attempt, who holds it)."""
        needs = [need for need in self.needs.get(name, ()) if not self.is_done(need)]
        if self.is_done(name):
            return "done", ""
        # In `states` without being done: it failed or is blocked itself, and so is this one.
        if any(need in states or need not in self.names for need in needs):
            return "blocked", ""
        if needs:
            return "waiting", f"needs {', '.join(needs)}"
        claim = claims.take(self.folder / name, self.timing)
        if isinstance(claim, claims.Held):
            return "waiting", str(claim)
        with claim:
            if self.is_done(name):
                return "done", ""
            if self.failure(name) not in (None, before[name]):
                return "failed", ""
            return self.run(name), ""
