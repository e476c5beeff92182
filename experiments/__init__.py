"""Entry points: `python -m experiments.<name> --config=configs/<file>.py --workdir=DIR`."""

import os

# Before numpy: decompositions are many small factorisations, on which BLAS threads gain little on
# an idle machine and lose tenfold on a busy one, where they wait for each other.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
