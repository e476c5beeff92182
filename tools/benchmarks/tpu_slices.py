"""What runs of the papers' tables need on TPUs: slices, memory, time. Compiled, not run.

    python -m tools.benchmarks.tpu_slices --out=FOLDER --minutes=60
    python -m tools.benchmarks.tpu_slices --out=FOLDER --minutes=0   # only writes the page

A JSON file for each model and slice, so that a further start goes on where the last one ended, and
the page docs/benchmarks/tpu.md from all that are there. Models are abstract: no weights, no data.
"""

import argparse
import dataclasses
import datetime
import json
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from configs.mpop import bert
from experiments.tables import training_cost
from mpojax import compression, devices, files, models, tables, training
from mpojax.methods import mpobert, mpoe, mpop
from mpojax.training import objectives
from mpojax.training.aot import topology
from mpojax.training.aot.estimate import DoesNotFitError
from mpojax.training.tasks import pretraining

PAGE = pathlib.Path(__file__).parents[2] / "docs/benchmarks/tpu.md"
CHIPS = ("v5e", "v5p", "v6e")
# Chips of the scaling table, and the models in it.
SCALING = {"v5e": ("2x4", "4x8", "8x16", "16x16")}
SCALED = ("MPOBERT48", "MPOE-8 T5-large")
# Headers of the two tables.
NEEDS = (
    *("run", "slice", "GiB a chip", "step, ms", "MFU", "interconnect"),
    "chip-hours of the run",
)
MORE = ("run", "slice", "chips", "GiB a chip", "step, ms", "interconnect", "tokens/s a chip")


@dataclasses.dataclass(frozen=True)
class Workload:
    """A row of a table, or what it is compared with.

    Attributes:
      model: () -> (settings, shapes).
      batch: {name: shape} of the global batch.
      loss: of a step.
      steps: of the run.
      optimizer: its name.
      trainable: see `mpop.trainable_filter`.
      axes: most chips of a mesh axis; the others are on `data`.
    """

    model: Callable[[], tuple[models.Config, Mapping]]
    batch: Mapping[str, tuple[int, ...]]
    loss: Any
    steps: int
    optimizer: str = "adamw"
    trainable: str = "all"
    axes: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @property
    def length(self) -> int:
        """Tokens of a text."""
        return self.batch["input_ids"][1]


def _pretrained(name: str, **changes) -> Workload:
    """MPOBERT's recipe: 10,000 steps of 4,096 rows of 128 tokens, 20 of them masked."""
    rows, length, masked = 4096, 128, 20
    names = ("mlm_positions", "mlm_labels", "mlm_weights")
    orders = ("sop_positions", "sop_labels", "sop_weights")
    batch = dict.fromkeys(("input_ids", "attention_mask", "token_type_ids"), (rows, length))
    batch |= dict.fromkeys(names, (rows, masked)) | dict.fromkeys(orders, (rows, 1))

    def model():
        config, shapes = mpobert.variant(name, vocab_size=30000, dtype="bfloat16", remat=True)
        return dataclasses.replace(config, **changes), {} if changes else shapes

    return Workload(model, batch, pretraining.pretraining_loss, 10_000, "lamb", axes={"fsdp": 8})


def _classifier(variant: str) -> Workload:
    """BERT-base on SST-2, as MPOP tunes it: 3 epochs of 67,349 texts."""
    config = bert.get_config(f"{variant},sst2")
    names = ("input_ids", "attention_mask", "token_type_ids")
    batch = dict.fromkeys(names, (config.batch_size, config.max_length))
    batch |= {"labels": (config.batch_size,)}
    rules = [(pattern, dict(fields)) for pattern, fields in config.rules]

    def model():
        settings = dataclasses.replace(
            models.PRESETS[config.architecture], num_labels=2, dtype="bfloat16"
        )
        return settings, compression.planned_shapes(settings, rules) if rules else {}

    loss = objectives.classification_loss
    return Workload(model, batch, loss, config.steps, trainable=config.trainable)


def _language(preset: str, variant: str, rows: int, length: int, steps: int) -> Workload:
    """A decoder or an encoder-decoder with experts; all of them on an axis of the mesh."""
    names = ["input_ids", "targets", "target_weights"]
    names += ["decoder_input_ids"] if preset.startswith("t5") else []

    def model():
        settings, shapes = mpoe.planned(preset, variant)
        return dataclasses.replace(settings, dtype="bfloat16", remat=True), shapes

    batch = dict.fromkeys(names, (rows, length))
    axes = {} if variant == "dense" else {"expert": 8}
    return Workload(model, batch, training.language_model_loss(), steps, axes=axes)


WORKLOADS: dict[str, Workload] = {
    "MPOBERT12": _pretrained("mpobert12"),
    "MPOBERT24": _pretrained("mpobert24"),
    "MPOBERT48": _pretrained("mpobert48"),
    "MPOBERT48+": _pretrained("mpobert48plus"),
    "48 layers, nothing shared": _pretrained("mpobert48", layer_groups=None),
    "MPOP BERT, lightweight": _classifier("full_lfa"),
    "MPOP BERT, all trained": _classifier("full"),
    "BERT dense, all trained": _classifier("dense"),
    "MPOE-8 GPT-2": _language("gpt2", "mpoe8", 64, 1024, 10_000),
    "Switch-8 GPT-2": _language("gpt2", "switch8", 64, 1024, 10_000),
    "MPOE-8 T5-base": _language("t5-base", "mpoe8", 256, 128, 10_000),
    "MPOE-8 T5-large": _language("t5-large", "mpoe8", 512, 512, 10_000),
}


def measure(name: str, slice_name: str) -> dict[str, Any]:
    """The step of a workload on a slice: `training.Report.summary`, or how much does not fit."""
    work = WORKLOADS[name]
    config, shapes = work.model()
    chips = topology.describe(slice_name)
    axes = {axis: min(most, len(chips)) for axis, most in work.axes.items()}
    model, trainable = mpop.with_trainable(mpop.abstract(config, shapes), work.trainable)
    optimizer = training.make_optimizer({"name": work.optimizer}, training.roles(model), work.steps)
    rows = work.batch["input_ids"][0]
    batch = {n: jax.ShapeDtypeStruct(shape, _dtype(n)) for n, shape in work.batch.items()}
    target = work.batch.get("decoder_input_ids", (0, 0))[1]
    flops = 3 * rows * training_cost.forward_flops(config, work.length, target)
    with devices.described(chips):
        report = training.dry_run(
            training.abstract_state(model, trainable, optimizer),
            work.loss,
            batch,
            optimizer=optimizer,
            mesh=training.make_mesh(axes),
            rules=training.model_rules(model),
            model_flops=flops,
        )
    return report.summary()


def _dtype(name: str):
    return jnp.float32 if name.endswith("weights") else jnp.int32


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
    needs = [
        _needed(name, work, chip, smallest(folder, name, chip))
        for name, work in WORKLOADS.items()
        for chip in CHIPS
    ]
    scaled = [
        _scaled(name, f"{chip}:{size}", _found(folder, name, f"{chip}:{size}"))
        for name in SCALED
        for chip, sizes in SCALING.items()
        for size in sizes
    ]
    return (
        f"{head}\n## The smallest slice that holds it\n\n{_table(NEEDS, needs)}\n\n"
        f"## More chips\n\n{_table(MORE, scaled)}\n"
    )


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return tables.markdown(headers, rows, left=len(headers))


_HEAD = """# TPUs: what runs need

Written by `python -m tools.benchmarks.tpu_slices --out=FOLDER` on {date}, jax {jax},
libtpu 0.0.42, on a machine without a TPU. **Estimates: nothing ran.** Each step was compiled for
the slice by the TPU compiler; memory is what the compiler plans, time is a roofline over the
operations of the compiled program (`mpojax.training.aot.estimate`), exchanges not overlapped.
"not run": not compiled yet (a step of a large model takes minutes); "or smaller": smaller slices
were not compiled yet.

MPOBERT: 4,096 rows of 128 tokens, 10,000 steps, LAMB, remat, up to 8 chips on `fsdp`. MPOP:
BERT-base on SST-2, 32 rows of 128. MPOE: 64 rows of 1,024 tokens for GPT-2, 256 of 128 for
T5-base, 512 of 512 for T5-large, 10,000 steps, experts over up to 8 chips. All in bfloat16 with
float32 parameters.

The same for any config: `python -m experiments.train --config=... --dry_run --topology=v5e:4x8`.
"""


def _needed(name: str, work: Workload, chip: str, found: tuple[str, dict] | None) -> list[str]:
    if found is None:
        return [name, chip, "not run", *[""] * 4]
    slice_name, estimate = found[0], found[1]["estimate"]
    hours = estimate["seconds"] * work.steps * estimate["num_chips"] / 3600
    return [name, slice_name, *_numbers(estimate), f"{hours:,.1f}"]


def _numbers(estimate: Mapping[str, Any]) -> list[str]:
    share = estimate["interconnect"] / estimate["seconds"]
    memory = f"{estimate['peak_bytes'] / 2**30:.2f}"
    return [memory, f"{1e3 * estimate['seconds']:,.1f}", f"{estimate['mfu']:.0%}", f"{share:.0%}"]


def _scaled(name: str, slice_name: str, found: dict | None) -> list[str]:
    if found is None or "estimate" not in found:
        text = "not run" if found is None else f"does not fit: {found['used'] / 2**30:.1f} GiB"
        return [name, slice_name, "", text, "", "", ""]
    estimate = found["estimate"]
    memory, step, _, share = _numbers(estimate)
    chips = estimate["num_chips"]
    speed = f"{estimate['tokens_per_second'] / chips:,.0f}"
    return [name, slice_name, str(chips), memory, step, share, speed]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", required=True, help="folder of the cells")
    parser.add_argument("--minutes", default=60.0, type=float, help="no cell starts after these")
    parser.add_argument("--cell", default="", help="NAME@SLICE: compile this one only")
    options = parser.parse_args()
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
            command = [sys.executable, "-m", "tools.benchmarks.tpu_slices", f"--out={folder}"]
            # A process each: where the compiler crashes, the others are compiled all the same.
            subprocess.run([*command, f"--cell={name}@{slice_name}"], check=False)
            files.write_atomic(PAGE, page(folder))
    files.write_atomic(PAGE, page(folder))


if __name__ == "__main__":
    main()
