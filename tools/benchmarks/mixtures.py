"""Forms of the experts of random mixtures at equal size: error, time, memory.

    python -m tools.benchmarks.mixtures --share=0.5

Matrices of experts are a common one and independent differences; inputs of each expert are normal,
with a falling spectrum of its own. Error is that of all outputs, relative; seconds are of this
process on one core, memory is its peak so far.
"""

import resource
import time
from collections.abc import Iterator

import numpy as np
from absl import app, flags

from mpojax import mpo, tables
from mpojax.mpo.experts import fitting

_SHARE = flags.DEFINE_float("share", 0.5, "Of the parameters of all experts that forms may have.")
_DIFFERENCE = flags.DEFINE_float("difference", 0.5, "Size of what experts do not have in common.")
_SIZES = flags.DEFINE_list("sizes", None, "Some of them; default: all.")

# {name: (experts, in, out)}: shapes of maps `up`, their sides divided by so much.
SIZES = {
    "Switch-8 of T5-small / 4": (8, 128, 512),
    "Mixtral / 16": (8, 256, 896),
    "OLMoE / 8": (64, 256, 128),
}


def experts_of(number: int, rows: int, columns: int, difference: float) -> mpo.ExpertMatrices:
    """A random mixture."""
    rng = np.random.default_rng(0)
    own = rng.standard_normal((number, rows, columns))
    ws = (rng.standard_normal((rows, columns)) + difference * own) / np.sqrt(rows)
    # Standard deviations of an expert's features, from 1 down to e^-3 in a random order.
    scales = np.exp(-np.linspace(0, 3, rows))
    xs = (rng.standard_normal((2 * rows, rows)) * rng.permutation(scales) for _ in range(number))
    # X_e^T X_e over the tokens of all experts, so that squared errors of experts add up.
    return mpo.ExpertMatrices(ws, [mpo.ridged(x.T @ x / (2 * rows * number), 1e-3) for x in xs])


def rows_of(name: str, share: float, difference: float) -> Iterator[list[str]]:
    """A row of the table for each form."""
    experts = experts_of(*SIZES[name], difference)
    norm = sum(
        mpo.weighted_square(w, m.matrix) for w, m in zip(experts.ws, experts.metrics, strict=True)
    )
    for form in fitting.FORMS:
        start = time.process_time()
        fits = list(experts.fits(int(share * experts.ws.size), (form,)))
        seconds = time.process_time() - start
        # kB on Linux
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        for fit in fits:
            error = np.sqrt(fit.squared_error / norm)
            ratio = 100 * fit.num_params / experts.ws.size
            yield [
                *(name, form, ",".join(map(str, fit.shape.bonds)), f"{ratio:.1f} %"),
                *(f"{error:.4f}", f"{seconds:.1f}", f"{memory:.0f}"),
            ]


def main(argv: list[str]) -> None:
    """Prints the table."""
    del argv
    headers = ["mixture", "form", "bonds", "of parameters", "error", "seconds", "peak MB"]
    names = _SIZES.value or SIZES
    found = [row for name in names for row in rows_of(name, _SHARE.value, _DIFFERENCE.value)]
    print(tables.markdown(headers, found))


if __name__ == "__main__":
    app.run(main)
