"""A run of several processes: started from flags, or by what a cluster says of itself.

    python -m experiments.train ... --coordinator=10.0.0.1:9000 --num_processes=2 --process_id=0
    python -m experiments.train ... --coordinator=10.0.0.1:9000 --num_processes=2 --process_id=1
    srun python -m experiments.train ... --distributed

All processes get the same command but for `--process_id`, and see the same workdir. `--distributed`
knows SLURM, TPU pods, Open MPI and Kubernetes (`jax.distributed.initialize`).
"""

import os
import socket
import sys
import threading
import time
import traceback

import jax
from absl import flags, logging

from experiments import peers

_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "HOST:PORT at which process 0 listens, for a run of several processes."
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many processes the run has.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which one this is, from 0.")
_DISTRIBUTED = flags.DEFINE_boolean(
    "distributed", False, "Several processes, as the cluster's environment says (SLURM, TPU, MPI)."
)
_TIMEOUT = flags.DEFINE_integer("start_timeout", 300, "Seconds to wait for the other processes.")

_GOODBYE_SECONDS = 10.0


def arguments(
    coordinator: str | None,
    num_processes: int | None,
    process_id: int | None,
    distributed: bool,
    timeout: int = 300,
) -> dict | None:
    """Arguments of `jax.distributed.initialize`, or None for a run of one process.

    Raises:
      ValueError: flags that are missing, out of range, or exclude each other.
    """
    given = {
        "--coordinator": coordinator,
        "--num_processes": num_processes,
        "--process_id": process_id,
    }
    missing = [name for name, value in given.items() if value is None]
    if timeout < 1:
        raise ValueError(f"--start_timeout={timeout} must be at least 1")
    if distributed and len(missing) < 3:
        redundant = ", ".join(name for name in given if name not in missing)
        raise ValueError(f"--distributed takes everything from the cluster; leave out {redundant}")
    if distributed:
        return {"initialization_timeout": timeout}
    if len(missing) == 3:
        return None
    if missing:
        raise ValueError(
            f"a run of several processes needs {', '.join(given)}; {', '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} missing"
        )
    host, colon, port = coordinator.rpartition(":")
    if not (host and colon and port.isdigit() and 0 < int(port) < 2**16):
        raise ValueError(
            f"--coordinator={coordinator} must be HOST:PORT, such as 10.0.0.1:9000 (the host of "
            "process 0 and a free port there)"
        )
    if num_processes < 1 or not 0 <= process_id < num_processes:
        raise ValueError(
            f"--process_id={process_id} must lie in 0..{num_processes - 1}, with --num_processes="
            f"{num_processes} at least 1"
        )
    return {
        "coordinator_address": coordinator,
        "num_processes": num_processes,
        "process_id": process_id,
        "initialization_timeout": timeout,
    }


def start() -> None:
    """Joins the processes of the run by the flags; all but process 0 fall silent.

    From here on the loss of a process ends the others, see `experiments.peers`.

    Must come before anything that asks jax for its devices.

    Raises:
      ValueError: see `arguments`; or the environment is not that of a cluster that is known.
      ConnectionError: the other processes cannot be reached.
    """
    settings = arguments(
        _COORDINATOR.value,
        _NUM_PROCESSES.value,
        _PROCESS_ID.value,
        _DISTRIBUTED.value,
        _TIMEOUT.value,
    )
    if settings is None:
        return
    # Not process 0, nor a cluster, where jax itself finds the coordinator.
    if settings.get("process_id"):
        _wait_for(settings["coordinator_address"], _TIMEOUT.value)
    elif "process_id" in settings:
        count = settings["num_processes"]
        logging.info("waiting for all %d processes, %d s at most", count, _TIMEOUT.value)
    try:
        jax.distributed.initialize(**settings)
    except ValueError as error:
        raise ValueError(
            f"--distributed found no cluster ({error}); it knows SLURM, TPU pods, Open MPI and "
            "Kubernetes. Elsewhere give --coordinator, --num_processes and --process_id"
        ) from error
    if jax.process_count() > 1:
        peers.watch(jax.process_index(), jax.process_count())
    if jax.process_index() == 0:
        logging.info(
            "%d processes, %d devices, %d of them here",
            *(jax.process_count(), jax.device_count(), jax.local_device_count()),
        )
    else:
        logging.set_verbosity(logging.WARNING)
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (until the end)


def _wait_for(coordinator: str, seconds: int) -> None:
    """Waits until process 0 listens; jax itself would abort without a word that helps."""
    host, _, port = coordinator.rpartition(":")
    deadline = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise ConnectionError(
                    f"process 0 does not answer at --coordinator={coordinator} after {seconds} s "
                    f"({error}); start it there, and see that no firewall is between"
                ) from error
        time.sleep(0.2)


def is_started() -> bool:
    """True if this process is one of several."""
    return jax.distributed.is_initialized()


def leave(status: int) -> None:
    """Ends a process after an error without waiting for the others for long.

    Where all of them fail alike they end together. Where only this one does, the others, who may
    wait for it in the middle of a step, are told by its absence.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    goodbye = threading.Thread(target=_shut_down, daemon=True)
    goodbye.start()
    goodbye.join(_GOODBYE_SECONDS)
    os._exit(status)


def _shut_down() -> None:
    try:
        jax.distributed.shutdown()
        peers.farewell()  # all have come to this end
    except RuntimeError:
        logging.debug("%s", traceback.format_exc())
