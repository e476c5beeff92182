"""Entry points: `python -m experiments.<name> --config=configs/<file>.py --workdir=DIR`."""

import os

# Before numpy: decompositions are many small factorisations, on which BLAS threads gain little on
# an idle machine and lose tenfold on a busy one, where they wait for each other.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# Stand-in devices on a CPU: each holds a thread while it waits for the others, and XLA's default
# number of threads, that of devices or cores, leaves none to go on with.
if "JAX_NUM_CPU_DEVICES" in os.environ:
    os.environ.setdefault("PJRT_NPROC", str(4 * int(os.environ["JAX_NUM_CPU_DEVICES"])))
