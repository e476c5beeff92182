"""A model as a flat dict {logical path: array} and back: the one border for files and surgery.

Logical paths name layers by index (`layers/3/attention/query/kernel`) although a model stores them
stacked; how layers are grouped into stacks is invisible here. All functions also work under jax
transformations, on traced arrays.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mpojax import checks, mpo, nn
from mpojax.models import heads, kinds, stacking
from mpojax.models.config import EncoderConfig
from mpojax.models.kinds import Config, Model
from mpojax.models.matrices import matrix_sizes

# Of mismatches in one message, with the line above them ten.
_MAX_LINES = 9


def to_arrays(model: Model) -> dict[str, jax.Array | np.ndarray]:
    """Parameters by logical path.

    Returns:
      numpy arrays (on CPU without a copy; do not write into them), or traced arrays inside a jax
      transformation.
    """
    arrays = {}
    for path, variable, layer_range in variables(model):
        value = variable[...]
        if not isinstance(value, jax.core.Tracer):
            value = np.asarray(value)
        for name, index in logical_names(path, layer_range):
            arrays[name] = value if index is None else value[index]
    return dict(sorted(arrays.items(), key=lambda item: _natural(item[0])))


def from_arrays(
    config: Config,
    shapes: Mapping[str, mpo.MPOShape] | None,
    arrays: Mapping,
    *,
    release: bool = False,
) -> Model:
    """The model of these settings with these parameters (float32 copies); inverse of `to_arrays`.

    Args:
      config, shapes: of the model.
      arrays: by logical path.
      release: takes each array out of `arrays` once it is copied, so that those of a file and the
        whole model are never in memory together.

    Raises:
      ValueError: arrays missing, unexpected, of another shape or not floating point.
    """
    abstract = nnx.eval_shape(lambda: kinds.build(config, shapes, rngs=nnx.Rngs(0)))
    graphdef, _ = nnx.split(abstract)
    entries = list(variables(abstract))
    check_coverage(dict(_expected(entries)), arrays, "arrays do not fit the model")
    filled = []
    for path, variable, layer_range in entries:
        names = [name for name, _ in logical_names(path, layer_range)]
        parts = [arrays.pop(name) if release else arrays[name] for name in names]
        value = _stacked(parts) if layer_range is not None else _as_float32(parts[0])
        filled.append((path, variable.replace(value)))
    return nnx.merge(graphdef, nnx.from_flat_state(filled))


def array_shapes(
    config: Config, shapes: Mapping[str, mpo.MPOShape] | None = None
) -> dict[str, tuple[int, ...]]:
    """Shape of every array that `from_arrays` needs, by logical path; nothing is allocated."""
    abstract = nnx.eval_shape(lambda: kinds.build(config, shapes, rngs=nnx.Rngs(0)))
    return dict(_expected(variables(abstract)))


def check_coverage(expected: Mapping[str, tuple[int, ...]], arrays: Mapping, what: str) -> None:
    """Checks that exactly the expected arrays are there, floating point and of their shapes.

    Args:
      expected: shape of each array, by name.
      arrays: by name.
      what: begins the message.

    Raises:
      ValueError: how many are missing, unexpected, of another shape or not floating point, and the
        first of each kind by name: ten lines at most.
    """
    found = {
        "missing": [name for name in expected if name not in arrays],
        "unexpected": [name for name in arrays if name not in expected],
        "shape mismatch": [
            f"{name} is {tuple(arrays[name].shape)}, must be {shape}"
            for name, shape in expected.items()
            if name in arrays and tuple(arrays[name].shape) != shape
        ],
        "not floating point": [
            f"{name} is {arrays[name].dtype}"
            for name in expected
            if name in arrays and not jnp.issubdtype(arrays[name].dtype, jnp.floating)
        ],
    }
    found = {kind: names for kind, names in found.items() if names}
    if found:
        counts = ", ".join(f"{len(names)} {kind}" for kind, names in found.items())
        raise ValueError("\n  ".join([f"{what} ({counts}):", *_first_lines(found)]))


def _first_lines(found: Mapping[str, list[str]]) -> list[str]:
    """A line for each name; of too many the first of each kind, and how many more there are."""
    is_long = sum(map(len, found.values())) > _MAX_LINES
    lines = []
    for kind, names in found.items():
        most = _MAX_LINES // len(found) if is_long else len(names)
        if len(names) > most:
            names = [*names[: most - 1], f"{len(names) - most + 1} more"]
        lines += [f"{kind}: {checks.cut(name, 120)}" for name in names]
    return lines


def count_parameters(model: Model) -> dict[str, int]:
    """Parameters by role ("central", "auxiliary", "adapter", "other"); their sum is the total.

    Works on abstract models too. A variable held in two places is counted once.
    """
    counts = dict.fromkeys(nn.ROLES, 0)
    for _, variable in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        counts[nn.role_of(variable)] += int(np.prod(variable.shape, dtype=np.int64))
    return counts


def reconfigure(model: Model, **changes) -> Model:
    """The same parameters under changed settings that leave every array as it is.

    For example `reconfigure(model, dtype="bfloat16", remat=True, dropout=0.0)`.
    """
    config = dataclasses.replace(model.config, **changes)
    return from_arrays(config, model.shapes, to_arrays(model))


def unshared(model: Model) -> Model:
    """The same function with parameters of its own for every layer (copies, on the host)."""
    config = dataclasses.replace(model.config, layer_groups=None, shared_roles=nn.ROLES)
    if not model.config.shares_everything:
        shapes = model.shapes
    else:
        shapes = dict(_for_each_layer(model.config, model.shapes))
    own = to_arrays(model)
    arrays = {name: own.get(name) for name in array_shapes(config, shapes)}
    for name, array in _for_each_layer(model.config, own):
        if arrays.get(name) is None:
            arrays[name] = array
    return from_arrays(config, shapes, arrays)


def _for_each_layer(config: EncoderConfig, entries: Mapping) -> Iterator[tuple[str, object]]:
    """Entries by path; those of the first layer of a block once for every layer of it."""
    for path, entry in entries.items():
        head, _, rest = path.partition("/")
        layer, _, inner = rest.partition("/")
        if head != "layers" or int(layer) % config.block_size:
            yield path, entry
        else:
            for copy in range(int(layer), int(layer) + config.block_size):
                yield f"layers/{copy}/{inner}", entry


def with_head(
    model: Model,
    num_labels: int,
    *,
    pooling: str | None = None,
    head: str = "classifier",
    label_names: Sequence[str] = (),
    rngs: nnx.Rngs,
) -> heads.SequenceClassifier | heads.SpanExtractor:
    """A model on the encoder of `model`, with a fresh head (and pooler, where there was none).

    Args:
      model: an encoder, or a model whose heads are thrown away.
      num_labels: outputs; 1 for a regression, 2 for a span.
      pooling: "pooler", "mean" or "first"; None keeps that of `model`. Pooler parameters that the
        new pooling does not use are dropped. A span head reads no sentence vector: it drops them
        whatever is given here.
      head: "classifier" or "span".
      label_names: of the classes, which exports name; those of a former head are forgotten.
      rngs: for the fresh parameters: a matrix of variance 1 / hidden size, zero bias.

    Raises:
      ValueError: not one label name for each output.
    """
    pooling = model.config.pooling if pooling is None else pooling
    pooling = "none" if head == "span" else pooling
    changes = {"num_labels": num_labels, "pooling": pooling, "head": head, "masked_lm": False}
    config = dataclasses.replace(model.config, **changes).with_label_names(label_names)
    sizes = matrix_sizes(config)
    shapes = {path: s for path, s in model.shapes.items() if path in sizes and path != "head"}
    dropped = ("head/", "masked_lm/")
    arrays = {p: a for p, a in to_arrays(model).items() if not p.startswith(dropped)}
    if pooling != "pooler":
        arrays = {p: a for p, a in arrays.items() if not p.startswith("pooler/")}
    for path in ("head", "pooler"):
        if path in sizes and not any(p.startswith(f"{path}/") for p in arrays):
            fresh = nn.Dense(*sizes[path], rngs=rngs)
            arrays[f"{path}/kernel"] = np.asarray(fresh.kernel[...])
            arrays[f"{path}/bias"] = np.asarray(fresh.bias[...])
    return from_arrays(config, shapes, arrays)


def variables(model) -> Iterator[tuple[tuple, nnx.Variable, range | None]]:
    """(path in the module, variable, layers it stacks or None) of every parameter.

    What a block of layers shares is named under the first layer of each block. `logical_names`
    makes the logical paths. Works on abstract models too.
    """
    owners = {(): model}
    if isinstance(model, heads.ModelWithHead):
        owners = {("encoder",): model.encoder}
    elif isinstance(model, kinds.LanguageModel):
        owners = {("tower",): model.tower}
    elif isinstance(model, kinds.EncoderDecoder):
        owners = {("towers", name): tower for name, tower in model.towers.items()}
    for path, variable in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        owner = next((o for start, o in owners.items() if path[: len(start)] == start), None)
        if owner is not None and "stacks" in path:
            whole = owner.stack_ranges[path[path.index("stacks") + 1]]
            if isinstance(model.config, EncoderConfig):
                whole = stacking.parameter_layers(model.config, variable, whole)
            yield path, variable, whole
        else:
            yield path, variable, None


def central_cores(model) -> dict[str, mpo.MPOShape]:
    """{path of a central core in the module, joined by `/`: shape of its chain}."""
    found = {}
    for path, variable, layer_range in variables(model):
        if isinstance(variable, nn.CentralCore):
            name, _ = logical_names(path, layer_range)[0]
            shape = model.shapes[name.partition("/cores/")[0]]
            found["/".join(map(str, path))] = shape
    return found


def logical_names(path: tuple, layer_range: range | None) -> list[tuple[str, int | None]]:
    """Logical paths of a variable, each with its index on the leading axis (None: not stacked)."""
    # The module that holds the layers has no part in the name.
    inner = path[1:] if path[0] in ("encoder", "tower", "towers") else path
    # Nor has which variables of experts are stacked over them.
    inner = tuple(part for part in inner if part not in ("experts", "shared"))
    if layer_range is None:
        return [("/".join(map(str, inner)), None)]
    place = inner.index("stacks")
    start = "/".join([*map(str, inner[:place]), "layers"])
    end = "/".join(map(str, inner[place + 2 :]))
    return [(f"{start}/{layer}/{end}", i) for i, layer in enumerate(layer_range)]


def _expected(entries) -> Iterator[tuple[str, tuple[int, ...]]]:
    for path, variable, layer_range in entries:
        shape = variable.shape if layer_range is None else variable.shape[1:]
        for name, _ in logical_names(path, layer_range):
            yield name, tuple(shape)


def _stacked(parts: list) -> jax.Array:
    if all(isinstance(part, np.ndarray) for part in parts):
        return jax.device_put(np.stack(parts).astype(np.float32, copy=False))
    return jnp.stack([_as_float32(part) for part in parts])


def _as_float32(array) -> jax.Array:
    if isinstance(array, jax.core.Tracer):
        return array.astype(jnp.float32)
    if isinstance(array, np.ndarray):
        return jax.device_put(array.astype(np.float32))  # copied on the host: no compilation
    return jnp.array(array, jnp.float32)


def _natural(path: str) -> list:
    """Sort key: layer numbers by value, not by digits."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in path.split("/")]


def is_floating(array: np.ndarray) -> bool:
    """True if the dtype is floating point, bfloat16 included."""
    return jnp.issubdtype(array.dtype, jnp.floating)


def check_finite(tensors: Mapping[str, np.ndarray], where: str):
    """Raises a ValueError that names every tensor with a NaN or an infinity."""
    bad = []
    for name, tensor in tensors.items():
        if is_floating(tensor) and not (finite := np.isfinite(tensor)).all():
            bad.append(
                f"{name} ({tensor.size - np.count_nonzero(finite)} of {tensor.size} elements)"
            )
    if bad:
        raise ValueError(
            f"{where} holds weights that are NaN or infinite: {checks.listed(bad)}. The checkpoint "
            "is damaged or its training diverged; use an earlier one."
        )
