"""Entry points: `python -m experiments.<name> --config=configs/<file>.py --workdir=DIR`."""

import os

# Before numpy. `compress` limits BLAS to one thread by itself; this is for all else that a command
# factorises on the host: curves of errors, squeezing, SMILE, deep LoRA, fits of MPOBERT. Threads
# gain little there on an idle machine, and on a busy one wait for each other: on two cores at a
# load of nine two of them took 20 times as long for an SVD (576, 1536), 160 for QRs (576, 24).
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# Stand-in devices on a CPU: each holds a thread while it waits for the others, and XLA's default
# number of threads, that of devices or cores, leaves none to go on with.
if "JAX_NUM_CPU_DEVICES" in os.environ:
    os.environ.setdefault("PJRT_NPROC", str(4 * int(os.environ["JAX_NUM_CPU_DEVICES"])))
