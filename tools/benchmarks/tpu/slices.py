"""What runs of the papers' tables need on TPUs: slices, memory, time. Compiled, not run.

    python -m tools.benchmarks.tpu.slices --out=FOLDER --minutes=60
    python -m tools.benchmarks.tpu.slices --out=FOLDER --minutes=0   # only writes the page

A JSON file for each model and slice, so that a further start goes on where the last one ended, and
the page docs/benchmarks/tpu.md from all that are there. Models are abstract: no weights, no data.
"""

import datetime
import json
import pathlib
import textwrap
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax

from mpojax import devices, files, tables, training
from mpojax.methods import mpop
from mpojax.training.aot import topology
from mpojax.training.aot.estimate import DoesNotFitError
from tools.benchmarks import tpu
from tools.benchmarks.workloads import WORKLOADS, Workload

PAGE = pathlib.Path(__file__).parents[3] / "docs/benchmarks/tpu.md"
CHIPS = ("v5e", "v5p", "v6e")
# Chips of the scaling table, and the models in it.
SCALING = {"v5e": ("2x4", "4x8", "8x16", "16x16")}
SCALED = ("MPOBERT48", "MPOE-8 T5-large")
# Runs next to what they are compared with, on the smallest slice that holds both.
PAIRS = (
    ("MPOBERT48", "48 layers, nothing shared"),
    ("MPOE-8 GPT-2", "Switch-8 GPT-2"),
    ("MPOE-8 T5-base", "Switch-8 T5-base"),
    ("MPOP BERT, lightweight", "BERT dense, all trained"),
    ("MPOP BERT, lightweight", "MPOP BERT, all trained"),
    ("OPDF, BERT's student in chains", "BERT's student, dense"),
    ("PET search, BERT's super-set", "BERT dense, all trained"),
)
# Headers of the tables.
NEEDS = (
    *("run", "slice", "GiB a chip", "step, ms", "MFU", "interconnect"),
    "chip-hours of the run",
)
BESIDE = ("run", "compared with", "slice", "GiB a chip", "step, ms", "over")
MORE = ("run", "slice", "chips", "GiB a chip", "step, ms", "interconnect", "tokens/s a chip")


def measure(name: str, slice_name: str) -> dict[str, Any]:
    """The step of a workload on a slice: `training.Report.summary`, or how much does not fit."""
    work = WORKLOADS[name]
    chips = topology.describe(slice_name)
    axes = {axis: min(most, len(chips)) for axis, most in work.axes.items()}
    model, trainable = mpop.with_trainable(mpop.abstract(*work.model()), work.trainable)
    optimizer = work.make_optimizer(model)
    with devices.described(chips):
        report = training.dry_run(
            training.abstract_state(model, trainable, optimizer),
            work.loss,
            work.abstract_batch(),
            optimizer=optimizer,
            mesh=training.make_mesh(axes),
            rules=training.model_rules(model),
            model_flops=work.flops(),
        )
    return report.summary()


def cells() -> Iterator[tuple[str, str]]:
    """(workload, slice) in the order of their use: scaling first, then the smallest slices."""
    for chip, sizes in SCALING.items():
        yield from ((name, f"{chip}:{size}") for size in sizes for name in SCALED)
    for chip in CHIPS:
        yield from (
            (name, f"{chip}:{size}") for name in WORKLOADS for size in topology.SLICES[chip]
        )


def _path(folder: pathlib.Path, name: str, slice_name: str) -> pathlib.Path:
    text = "".join(c if c.isalnum() else "_" for c in f"{name}__{slice_name}")
    return folder / f"{text}.json"


def _found(folder: pathlib.Path, name: str, slice_name: str) -> dict[str, Any] | None:
    path = _path(folder, name, slice_name)
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _is_needed(folder: pathlib.Path, name: str, slice_name: str) -> bool:
    """False for what is known, and for slices larger than one that holds the model."""
    if _found(folder, name, slice_name) is not None:
        return False
    chip, _, size = slice_name.partition(":")
    if name in SCALED and size in SCALING.get(chip, ()):
        return True
    sizes = topology.SLICES[chip]
    smaller = [_found(folder, name, f"{chip}:{each}") for each in sizes[: sizes.index(size)]]
    return not any(each and "estimate" in each for each in smaller)


def smallest(folder: pathlib.Path, name: str, chip: str) -> tuple[str, dict] | None:
    """The smallest slice that holds a workload, as text, and its report; None: not compiled."""
    # Whether all smaller slices were compiled: only then is this one the smallest.
    known = True
    for size in topology.SLICES[chip]:
        found = _found(folder, name, f"{chip}:{size}")
        if found and "estimate" in found:
            return f"{chip}:{size}{'' if known else ' or smaller'}", found
        known = known and found is not None
    return None


def page(folder: pathlib.Path) -> str:
    """The page of the documentation."""
    head = _HEAD.format(date=datetime.date.today(), jax=jax.__version__)
    found = {(n, c): smallest(folder, n, c) for n in WORKLOADS for c in CHIPS}
    needs = [_needed(name, WORKLOADS[name], each) for (name, _), each in found.items() if each]
    missing = {c: [n for n in WORKLOADS if found[n, c] is None] for c in CHIPS}
    slices = [(name, f"{c}:{size}") for name in SCALED for c in SCALING for size in SCALING[c]]
    scaled = {place: _found(folder, *place) for place in slices}
    missing |= {place[1]: [n for n in SCALED if scaled[n, place[1]] is None] for place in slices}
    rows = [_scaled(*place, each) for place, each in scaled.items() if each is not None]
    pairs = [_compared(folder, *pair, chip) for pair in PAIRS for chip in CHIPS]
    return (
        f"{head}\n## The smallest slice that holds it\n\n{_table(NEEDS, needs)}\n\n"
        f"## Side by side\n\n{_table(BESIDE, filter(None, pairs))}\n\n"
        f"## More chips\n\n{_table(MORE, rows)}\n\n"
        f"## Not compiled yet\n\n{_listed(missing)}\n{_KERNEL}"
    )


def _listed(missing: Mapping[str, Sequence[str]]) -> str:
    """A line for each chip or slice with runs that are missing on it."""
    lines = [
        textwrap.fill(f"- {place}: {'; '.join(names)}", 98, subsequent_indent="  ")
        for place, names in missing.items()
        if names
    ]
    return "\n".join(lines or ["Nothing."])


def _compared(folder: pathlib.Path, name: str, other: str, chip: str) -> list[str] | None:
    """A run and its peer on the smallest slice where both are known; None: there is none yet."""
    for size in topology.SLICES[chip]:
        found = [_found(folder, each, f"{chip}:{size}") for each in (name, other)]
        if all(each and "estimate" in each for each in found):
            one, two = (each["estimate"] for each in found)
            memory = [f"{each['peak_bytes'] / 2**30:.2f}" for each in (one, two)]
            times = [f"{1e3 * each['seconds']:,.1f}" for each in (one, two)]
            ratio = f"{one['seconds'] / two['seconds']:.2f}"
            pairs = (" / ".join(memory), " / ".join(times))
            return [name, other, f"{chip}:{size}", *pairs, ratio]
    return None


def _table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return tables.markdown(headers, list(rows), left=len(headers))


_HEAD = """# TPUs: what runs need

Written by `python -m tools.benchmarks.tpu.slices --out=FOLDER` on {date}, jax {jax},
libtpu 0.0.42, on a machine without a TPU. **Estimates: nothing ran.** Each step was compiled for
the slice by the TPU compiler; memory is what the compiler plans, time is a roofline over the
operations of the compiled program (`mpojax.training.aot.estimate`), exchanges not overlapped.
"or smaller": smaller slices were not compiled yet (a step of a large model takes minutes).

MPOBERT: 4,096 rows of 128 tokens, 10,000 steps, LAMB, remat, up to 8 chips on `fsdp`. MPOP, OPDF
and PET search: BERT-base on SST-2, 32 rows of 128; of OPDF the student's own layers, of a search
the super-set of adapters before anything is dropped. MPOE: 64 rows of 1,024 tokens for GPT-2, 256
of 128 for T5-base, 512 of 512 for T5-large, 10,000 steps, experts over up to 8 chips. All in
bfloat16 with float32 parameters.

The same for any config: `python -m experiments.train --config=... --dry_run --topology=v5e:4x8`.
"""


# Of experiments with kernels that are not in the code: what they came to.
_KERNEL = """
## No kernel of its own for the matrix

A Pallas kernel that makes a 768 x 3072 matrix of bonds 32 in the chip's own memory, on the matrix
units (a product with each row digit, the rows then put in order by moving sublanes), was written,
found equal to `to_matrix` within bfloat16 and compiled for v5e. It is left out:

| what, v5e, bonds 32 | us | by |
| --- | ---: | --- |
| `to_matrix` as it is | 66 | cycles of its operations |
| the kernel alone | 11 | bundles of its schedule: 2 x (64 x 66 + 3,850) at 1.5 GHz |
| what must run before it, cores to C R and L | 26 | cycles of its operations |
| C R by a product with R in a block-diagonal matrix instead | 31 | the same |
| on the vector units instead (sums over the bond), alone | 33 | 196,000 operations, 4 a cycle |

So it would take 28 us off a rebuild, 6 % of forward and backward at 4,096 tokens (457 us, dense
336): 1.28 over dense in the place of 1.36. Most of what is left are small operations of 1.5 us
each. Multiplying at once what is rebuilt saves nothing further: the compiler keeps the matrix on
the chip already (84 MB cross the main memory, dense 120). At full bonds the vector units would take
200 us. Against it: the compiler cannot divide a kernel over a mesh, and nothing was measured.
"""


def _needed(name: str, work: Workload, found: tuple[str, dict]) -> list[str]:
    slice_name, estimate = found[0], found[1]["estimate"]
    hours = estimate["seconds"] * work.steps * estimate["num_chips"] / 3600
    return [name, slice_name, *_numbers(estimate), f"{hours:,.1f}"]


def _numbers(estimate: Mapping[str, Any]) -> list[str]:
    share = estimate["interconnect"] / estimate["seconds"]
    memory = f"{estimate['peak_bytes'] / 2**30:.2f}"
    return [memory, f"{1e3 * estimate['seconds']:,.1f}", f"{estimate['mfu']:.0%}", f"{share:.0%}"]


def _scaled(name: str, slice_name: str, found: dict) -> list[str]:
    if "estimate" not in found:
        text = f"does not fit: {found['used'] / 2**30:.1f} GiB"
        return [name, slice_name, "", text, "", "", ""]
    estimate = found["estimate"]
    memory, step, _, share = _numbers(estimate)
    chips = estimate["num_chips"]
    speed = f"{estimate['tokens_per_second'] / chips:,.0f}"
    return [name, slice_name, str(chips), memory, step, share, speed]


def main() -> None:
    options = tpu.parser(__doc__, "NAME@SLICE", minutes=60.0).parse_args()
    folder = pathlib.Path(options.out)
    folder.mkdir(parents=True, exist_ok=True)
    if options.cell:
        name, _, slice_name = options.cell.partition("@")
        try:
            found = measure(name, slice_name)
        except DoesNotFitError as problem:
            found = {"used": problem.used, "capacity": problem.capacity}
        files.write_atomic(_path(folder, name, slice_name), json.dumps(found, indent=1) + "\n")
        return
    end = time.monotonic() + 60 * options.minutes
    for name, slice_name in cells():
        if time.monotonic() < end and _is_needed(folder, name, slice_name):
            tpu.compile_apart("slices", folder, f"{name}@{slice_name}")
            files.write_atomic(PAGE, page(folder))
    files.write_atomic(PAGE, page(folder))


if __name__ == "__main__":
    main()
