"""Notices when a process of a run is gone: the others end with one line instead of waiting for it.

Without it they would wait in the middle of a step until the runtime gives up, which then aborts
with a dump of its own. Each process holds a connection to process 0; the system closes it when the
process dies, however it does, and keep-alive packets notice a machine that is lost.
"""

import atexit
import contextlib
import ctypes
import os
import secrets
import selectors
import signal
import socket
import sys
import threading
import time

from absl import logging
from jax._src import distributed

_KEY = "mpojax/peers"
_BYE = b"bye\n"
# Seconds by which what native code writes to stderr, and an abort, are late: time to say it better.
_DELAY = 0.5
_STATUS = 2


class Peers:
    """The connection to the other processes, watched by a thread.

    Args:
      index, count: of this process, of all.
      errors: file descriptor of what the user reads.
    """

    def __init__(self, index: int, count: int, errors: int):
        self.index, self.count, self.errors = index, count, errors
        self._others: dict[socket.socket, int] = {}  # connections and whose they are
        self._ended: set[socket.socket] = set()  # of those that have said that they end
        self.lost = threading.Event()
        state = distributed.global_state
        if index == 0:
            self._listen(state.client)
        else:
            host = state.coordinator_address.rpartition(":")[0].strip("[]")
            self._connect(state.client, host)
        threading.Thread(target=self._watch, daemon=True).start()

    def farewell(self) -> None:
        """Tells the others that this process ends as it should; it still watches them."""
        for connection in list(self._others):
            with contextlib.suppress(OSError):
                connection.sendall(_BYE)

    def _listen(self, store) -> None:
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        self._server = socket.create_server(("", 0), family=family, dualstack_ipv6=both)
        self._token = secrets.token_hex(16)
        # The token keeps out whoever finds the open port; only processes of the run see the store.
        store.key_value_set(_KEY, f"{self._server.getsockname()[1]} {self._token}")

    def _connect(self, store, host: str) -> None:
        self._server = None
        port, token = store.blocking_key_value_get(_KEY, 60_000).split()
        try:
            connection = socket.create_connection((host, int(port)), timeout=10)
        except OSError as error:
            logging.warning(
                "no connection to process 0 at %s:%s (%s): a process that is lost will be noticed "
                "late",
                *(host, port, error),
            )
            return
        connection.settimeout(None)
        _keep_alive(connection)
        connection.sendall(f"{token} {self.index}\n".encode())
        self._others[connection] = 0

    def _watch(self) -> None:
        with selectors.DefaultSelector() as selector:
            for connection in (self._server, *self._others):
                if connection is not None:
                    selector.register(connection, selectors.EVENT_READ)
            while selector.get_map():
                for key, _ in selector.select():
                    if key.fileobj is self._server:
                        connection, _ = self._server.accept()
                        _keep_alive(connection)
                        selector.register(connection, selectors.EVENT_READ)
                    elif not self._hear(key.fileobj):
                        selector.unregister(key.fileobj)

    def _hear(self, connection: socket.socket) -> bool:
        """Takes what another process says, or its end; whether it is still to be watched."""
        try:
            said = connection.recv(200)
        except OSError:  # keep-alive: the machine does not answer
            said = b""
        if connection not in self._others:
            greeting, _, said = said.partition(b"\n")
            if not self._greeted(connection, greeting):
                connection.close()
                return False
        elif not said:
            if connection not in self._ended:
                self._leave(self._others[connection])
            return False
        for line in said.splitlines(keepends=True):
            if line == _BYE:  # its end is none of ours, but ours would be one of its
                self._ended.add(connection)
            else:  # process 0 says which one is gone
                self._leave(int(line))
        return True

    def _greeted(self, connection: socket.socket, greeting: bytes) -> bool:
        """Takes the first line of a connection; False: it is none of this run's processes."""
        token, _, index = greeting.decode("ascii", "replace").partition(" ")
        if not (secrets.compare_digest(token, self._token) and index.isdigit()):
            return False
        self._others[connection] = int(index)
        return True

    def _leave(self, gone: int) -> None:
        self.lost.set()
        for connection in self._others:
            with contextlib.suppress(OSError):
                connection.sendall(f"{gone}\n".encode())
        text = (
            f"error: process {gone} of {self.count} is gone (see what it said last), and process "
            f"{self.index} ends with it; the same command, for all processes, resumes the run\n"
        )
        os.write(self.errors, text.encode())
        os._exit(_STATUS)


def _keep_alive(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, seconds in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4)):
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), seconds)


_watched: Peers | None = None


def watch(index: int, count: int) -> None:
    """Watches the other processes until `farewell`; after `jax.distributed.initialize`."""
    global _watched
    errors = os.dup(2)
    _watched = Peers(index, count, errors)
    _delay_native_errors(errors, _watched.lost)
    _delay_aborts()


def farewell() -> None:
    """This process ends as it should: the others need not follow it."""
    if _watched is not None:
        _watched.farewell()


@contextlib.contextmanager
def together():
    """Work of all processes: without an error, this one's end is none for the others.

    An error waits a moment: where it comes from a lost process, this one ends meanwhile.
    """
    try:
        yield
    except Exception:
        if _watched is not None:
            time.sleep(2 * _DELAY)
        raise
    farewell()


def _delay_native_errors(errors: int, lost: threading.Event) -> None:
    """Passes on what native code writes to stderr, but for what it says about a lost process.

    Python's own stderr stays what it was, a terminal for instance.
    """
    reading, writing = os.pipe()
    sys.stderr.flush()
    os.dup2(writing, 2)
    os.close(writing)
    sys.stderr = os.fdopen(os.dup(errors), "w", buffering=1, encoding="utf-8", errors="replace")
    logging.get_absl_handler().python_handler.setStream(sys.stderr)

    def forward() -> None:
        while said := os.read(reading, 2**16):
            time.sleep(_DELAY)
            if not lost.is_set():
                os.write(errors, said)

    thread = threading.Thread(target=forward, daemon=True)
    thread.start()

    def finish() -> None:
        os.dup2(errors, 2)
        thread.join(4 * _DELAY)

    atexit.register(finish)


def _delay_aborts() -> None:
    """An abort of native code waits for some seconds, in which `Peers` can end the process.

    The runtime aborts at the moment at which it loses process 0. The handler is C's own `sleep`,
    called with the number of the signal: six seconds.
    """
    library = ctypes.CDLL(None)
    library.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
    library.signal.restype = ctypes.c_void_p
    library.signal(signal.SIGABRT, ctypes.cast(library.sleep, ctypes.c_void_p))
