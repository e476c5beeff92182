"""Load of the routers of experts, layer by layer, while a model is trained."""

import csv
import io
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from mpojax import checks, files
from mpojax.data import pipeline
from mpojax.training import evaluation, hooks, sharding, update_statistics
from mpojax.training import state as state_lib
from mpojax.training.tasks import language_modeling

if TYPE_CHECKING:
    from mpojax.training.loop import Loop

NAME = "router.csv"
COLUMNS = (
    *("step", "layer", "expert", "load", "probability"),
    *("entropy", "dropped", "balance", "z_loss", "tokens"),
)
_MEANS = ("load", "probability", "entropy", "dropped", "z_loss")  # over tokens


class RouterStatistics(hooks.Hook):
    """Runs the model, without dropout, over some batches and logs where its tokens go.

    Before the first step, every `every` steps and after the last. For each layer with experts,
    named as by `UpdateStatistics` (`layer_03`, `decoder_layer_03`): `router/<layer>/load_05`, the
    fraction of tokens that the router sends to expert 5; `router/<layer>/max_load`, the largest of
    them over that of an even load; `router/<layer>/entropy` of a token's probabilities, in nats;
    `router/<layer>/dropped`, the fraction of assignments dropped for lack of capacity.

    The run's folder gets `router.csv`: a row for each step, layer and expert, see `COLUMNS`; from
    `entropy` on they are those of the layer. See `read`.

    Args:
      data: evaluation batches of a kind that `language_modeling.forward` takes.
      every: steps between two looks; 0 = before the first step and after the last.
      batches: at most so many of the data's batches, from the first on.

    Raises:
      ValueError: a number out of range.
    """

    order = 50

    def __init__(self, data: pipeline.EvalBatches, every: int = 100, batches: int = 8):
        checks.check_value("every", every, checks.integer(0))
        checks.check_value("batches", batches, checks.integer(1))
        self.data, self.every, self.batches = data, every, batches
        self._compiled: Any = None

    def begin(self, loop: "Loop") -> None:
        if loop.folder is not None and jax.process_index() == 0:
            # Rows behind the checkpoint are of a run that was killed: these steps come again.
            _write(loop.folder, [row for row in _rows(loop.folder) if int(row[0]) <= loop.step])
        if loop.step == 0:
            self._look(loop)

    def after_step(self, loop: "Loop") -> None:
        if (self.every and loop.step % self.every == 0) or loop.step == loop.steps:
            self._look(loop)

    def _look(self, loop: "Loop") -> None:
        with loop.untimed():
            names = layers_with_experts(loop.state)
            layers = self._measure(loop, names)
            if len(names) != len(layers):
                raise ValueError(
                    f"the model has routers in the layers {names}, but its output has the "
                    f"statistics of {len(layers)}"
                )
            values, rows = {}, []
            for name, found in zip(names, layers, strict=True):
                values |= _logged(name, found)
                rows += _lines(loop.step, name, found)
            loop.log(values, keep=False)
            if loop.folder is not None and jax.process_index() == 0:
                before = [row for row in _rows(loop.folder) if int(row[0]) != loop.step]
                _write(loop.folder, before + rows)

    def _measure(self, loop: "Loop", names: Sequence[str]) -> list[dict[str, np.ndarray]]:
        """Statistics of each layer with experts, called `names`, over all batches, float64."""
        if self._compiled is None:
            everywhere = NamedSharding(loop.mesh, PartitionSpec())
            self._compiled = jax.jit(_routing, static_argnums=0, out_shardings=everywhere)
        local = sharding.local_rows(self.data.batch_size, loop.mesh)
        state, sums = loop.state, None
        for index in range(min(self.batches, len(self.data))):
            rows = self._masked(index, self.data.rows(index, local))
            batch = sharding.shard_batch(rows, self.data.batch_size, loop.mesh)
            found = self._compiled(state.definition, state.trainable, state.frozen, batch)
            layers = [_weighted(layer) for layer in _by_layer(jax.device_get(found))]
            if not layers:
                raise ValueError("RouterStatistics needs a model with experts; this one has none")
            _check_finite(layers, names, index)
            sums = (
                layers
                if sums is None
                else [_added(*pair) for pair in zip(sums, layers, strict=True)]
            )
        return [_averaged(layer) for layer in sums]

    def _masked(self, index: int, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The batch; where it is filled up with copies, their tokens count as padding."""
        rows = dict(rows)
        real = rows.pop("example_mask")
        if (index + 1) * self.data.batch_size <= self.data.num_examples:
            return rows
        for ids, mask in (
            ("input_ids", "attention_mask"),
            ("decoder_input_ids", "decoder_attention_mask"),
        ):
            if ids in rows:
                given = np.asarray(rows.get(mask, np.ones_like(rows[ids])))
                # Copies that fill the last batch up must not count twice.
                rows[mask] = given * real[:, None].astype(given.dtype)
        return rows


def read(folder: str | pathlib.Path) -> list[dict[str, Any]]:
    """Reads what a run has measured: a dict for each row of `router.csv`, numbers parsed."""
    whole = ("step", "expert")
    return [
        {
            name: text if name == "layer" else int(text) if name in whole else float(text)
            for name, text in zip(COLUMNS, row, strict=True)
        }
        for row in _rows(files.at(folder))
    ]


def layers_with_experts(state: state_lib.TrainState) -> list[str]:
    """Names of the layers that have a router, in the order of the models' statistics."""
    parameters = state_lib.flatten(state.trainable) | state_lib.flatten(state.frozen)
    depths: dict[str, int] = {}
    routed = set()
    for path, leaf in parameters.items():
        if state_lib.layer_axes(path):
            stack = update_statistics.stack_of(path)
            depths[stack] = max(depths.get(stack, 0), leaf.shape[0])
            if re.fullmatch(r".*/router/.+", path):
                routed.add(stack)
    firsts, prefixes = update_statistics.firsts(depths), update_statistics.prefixes(depths)
    # As `LanguageModelOutput.routing` has them: the encoder's layers come first.
    order = sorted(routed, key=lambda s: (update_statistics.tower_of(s) != "encoder", firsts[s]))
    return [
        f"{prefixes[stack]}layer_{firsts[stack] + index:02d}"
        for stack in order
        for index in range(depths[stack])
    ]


def _routing(definition, trainable, frozen, batch: dict) -> tuple:
    return language_modeling.forward(definition.merge(trainable, frozen), batch).routing


def _by_layer(routing: Sequence[Any]) -> Iterable[Any]:
    for statistics in routing:
        for index in range(len(statistics.tokens)):
            yield jax.tree.map(lambda leaf, index=index: leaf[index], statistics)


def _weighted(layer: Any) -> dict[str, np.ndarray]:
    """Sums over tokens of what `nn.RouterStatistics` has as means."""
    tokens = np.float64(layer.tokens)
    # A mean times its tokens is a sum: batches with more real tokens weigh more.
    means = {name: np.asarray(getattr(layer, name), np.float64) * tokens for name in _MEANS}
    return {"tokens": tokens} | means


def _check_finite(layers: Sequence[dict], names: Sequence[str], batch: int) -> None:
    for name, layer in zip(names, layers, strict=False):
        for metric, value in layer.items():
            if not np.all(np.isfinite(value)):
                raise evaluation.NonFiniteOutputError(
                    f"router/{name}/{metric}: what the router gives for batch {batch + 1} is NaN "
                    "or infinite; the model's parameters may hold NaN"
                )


def _added(one: dict, other: dict) -> dict[str, np.ndarray]:
    return {name: value + other[name] for name, value in one.items()}


def _averaged(sums: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    tokens = sums["tokens"]
    means = {name: sums[name] / np.maximum(tokens, 1.0) for name in _MEANS}
    # E sum_e f_e p_e of the whole data (Switch); the mean of the batches' values is another.
    balance = len(means["load"]) * np.sum(means["load"] * means["probability"])
    return means | {"balance": balance, "tokens": tokens}


def _logged(name: str, layer: dict[str, np.ndarray]) -> dict[str, float]:
    load = layer["load"]
    values = {f"load_{expert:02d}": share for expert, share in enumerate(load)}
    values |= {"max_load": len(load) * np.max(load)}
    values |= {key: layer[key] for key in ("entropy", "dropped")}
    return {f"router/{name}/{key}": float(value) for key, value in values.items()}


def _lines(step: int, name: str, layer: dict[str, np.ndarray]) -> list[list[str]]:
    # Columns from `entropy` on: of the layer, the same in the row of each expert.
    of_layer = [repr(float(layer[column])) for column in COLUMNS[5:]]
    pairs = zip(layer["load"], layer["probability"], strict=True)
    return [
        [str(step), name, str(expert), repr(float(load)), repr(float(probability)), *of_layer]
        for expert, (load, probability) in enumerate(pairs)
    ]


def _rows(folder: pathlib.Path) -> list[list[str]]:
    path = folder / NAME
    if not path.is_file():
        return []
    header, *rows = csv.reader(io.StringIO(path.read_text(encoding="utf-8")))
    if tuple(header) != COLUMNS:
        raise ValueError(f"{path} has the columns {header}, not {list(COLUMNS)}; remove it")
    return rows


def _write(folder: pathlib.Path, rows: Sequence[Sequence[str]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([COLUMNS, *rows])
    files.write_atomic(folder / NAME, text.getvalue())
