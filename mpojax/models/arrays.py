"""A model as a flat dict {logical path: array} and back: the one border for files and surgery.

Logical paths name layers by index (`layers/3/attention/query/kernel`) although a model stores them
stacked; how layers are grouped into stacks is invisible here. All functions also work under jax
transformations, on traced arrays.
"""

import functools
import math
from collections.abc import Collection, Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mpojax import checks, mpo, nn
from mpojax.models import heads, stack
from mpojax.models.config import Config, DecoderConfig, EncoderConfig, EncoderDecoderConfig
from mpojax.models.decoder import Decoder, LanguageModel
from mpojax.models.encoder import Encoder
from mpojax.models.encoder_decoder import EncoderDecoder, SourceEncoder
from mpojax.models.model import Model

_ALIGNMENT = 64  # bytes
# Of mismatches in one message, with the line above them ten.
_MAX_LINES = 9


def build(
    config: Config, shapes: Mapping[str, mpo.MPOShape] | None = None, *, rngs: nnx.Rngs
) -> Model:
    """A random model of these settings, an encoder with the heads that they name.

    `shapes` gives the MPO form of any matrix, by path.
    """
    return _CLASSES[type(config)](config)(config, shapes, rngs=rngs)


def _of_encoder(config: EncoderConfig) -> type[Model]:
    if config.masked_lm:
        return heads.PretrainingModel
    return Encoder if config.num_labels is None else heads.KINDS[config.head]


def _of_decoder(config: DecoderConfig) -> type[Model]:
    if config.generates:
        return LanguageModel
    return Decoder if config.num_labels is None else heads.KINDS[config.head]


def _of_pair(config: EncoderDecoderConfig) -> type[Model]:
    return EncoderDecoder if config.generates else SourceEncoder


_CLASSES = {
    EncoderConfig: _of_encoder,
    DecoderConfig: _of_decoder,
    EncoderDecoderConfig: _of_pair,
}


def abstract(config: Config, shapes: Mapping[str, mpo.MPOShape] | None = None) -> Model:
    """The model of these settings with shapes in the place of arrays; nothing is allocated."""
    return nnx.merge(*_traced(config, tuple(sorted((shapes or {}).items()))), copy=True)


@functools.lru_cache(maxsize=64)
def _traced(config: Config, shapes: tuple[tuple[str, mpo.MPOShape], ...]):
    # Kept: a model is checked, filled, changed and listed by the same settings again and again.
    return nnx.split(nnx.eval_shape(lambda: build(config, dict(shapes), rngs=nnx.Rngs(0))))


def to_arrays(model: Model) -> dict[str, jax.Array | np.ndarray]:
    """Parameters by logical path.

    Returns:
      numpy arrays (on CPU without a copy; do not write into them), or traced arrays inside a jax
      transformation.
    """
    arrays = {}
    for path, variable, layer_range in variables(model):
        value = variable[...]
        # One transfer for a stack; its layers are views of that array.
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
    keep_16_bits: bool = False,
) -> Model:
    """The model of these settings with these parameters (float32 copies); inverse of `to_arrays`.

    Args:
      config, shapes: of the model.
      arrays: by logical path; what `numpy.asarray` reads counts as an array.
      release: takes each array out of `arrays` once it is copied, so that those of a file and the
        whole model are never in memory together.
      keep_16_bits: matrices, embeddings and cores in bfloat16 and float16 stay so.

    Raises:
      ValueError: arrays missing, unexpected, of another shape or not floating point.
    """
    made = check_arrays(config, shapes, arrays)
    return filled(made, arrays, release=release, keep_16_bits=keep_16_bits)


def filled(
    made: Model, arrays: Mapping, *, release: bool = False, keep_16_bits: bool = False
) -> Model:
    """An abstract model, that `check_arrays` gave, with these arrays; see `from_arrays`."""
    graphdef, _ = nnx.split(made)
    found = []
    for path, variable, layer_range in variables(made):
        names = [name for name, _ in logical_names(path, layer_range)]
        parts = [arrays.pop(name) if release else arrays[name] for name in names]
        if isinstance(variable, nn.ColumnOrder):
            parts = [np.asarray(part, np.int32) for part in parts]
            value = jnp.asarray(np.stack(parts) if layer_range is not None else parts[0])
        else:
            dtype = _kept_dtype(path, parts) if keep_16_bits else np.float32
            value = _copied(parts, layer_range is not None, dtype)
        found.append((path, variable.replace(value)))
    return nnx.merge(graphdef, nnx.from_flat_state(found))


def check_arrays(config: Config, shapes: Mapping[str, mpo.MPOShape] | None, arrays: Mapping):
    """The abstract model of these settings, for which the arrays are checked by name and shape.

    Raises:
      ValueError: see `from_arrays`.
    """
    made = abstract(config, shapes)
    entries = list(variables(made))
    orders = [entry for entry in entries if isinstance(entry[1], nn.ColumnOrder)]
    checked = "arrays do not fit the model"
    check_coverage(dict(_expected(entries)), arrays, checked, dict(_expected(orders)))
    return made


def array_shapes(
    config: Config, shapes: Mapping[str, mpo.MPOShape] | None = None
) -> dict[str, tuple[int, ...]]:
    """Shape of every array that `from_arrays` needs, by logical path; nothing is allocated."""
    return dict(_expected(variables(abstract(config, shapes))))


def check_coverage(
    expected: Mapping[str, tuple[int, ...]],
    arrays: Mapping,
    what: str,
    integers: Collection[str] = (),
) -> None:
    """Checks that exactly the expected arrays are there, floating point and of their shapes.

    Args:
      expected: shape of each array, by name.
      arrays: by name.
      what: begins the message.
      integers: names of arrays that are integers instead.

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
            if name in arrays
            and name not in integers
            and not jnp.issubdtype(arrays[name].dtype, jnp.floating)
        ],
        "not integers": [
            f"{name} is {arrays[name].dtype}"
            for name in integers
            if name in arrays and not jnp.issubdtype(arrays[name].dtype, jnp.integer)
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
        # Every kind gets an equal part of the lines, its last one for the number of the others.
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
    for _, variable in nnx.to_flat_state(nnx.state(model, nn.STORED)):
        counts[nn.role_of(variable)] += int(np.prod(variable.shape, dtype=np.int64))
    return counts


def variables(model: nnx.Module) -> Iterator[tuple[tuple, nnx.Variable, range | None]]:
    """(path in the module, variable, layers it stacks or None) of every parameter.

    What a block of layers shares is named under the first layer of each block. `logical_names`
    makes the logical paths. Works on abstract models too.
    """
    stacks = {
        path: module
        for path, module in nnx.iter_modules(model)
        if isinstance(module, stack.TransformerStack)
    }
    for path, variable in nnx.to_flat_state(nnx.state(model, nn.STORED)):
        inside = path.index("stacks") if "stacks" in path else None
        owner = stacks.get(path[:inside])
        if inside is None or owner is None:
            yield path, variable, None
        else:
            layers = owner.stack_ranges[path[inside + 1]]
            yield path, variable, stack.parameter_layers(owner.config, variable, layers)


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
    inner = path[1:] if path[0] == "encoder" else path
    inner = inner[1:] if inner[0] in ("tower", "towers") else inner
    # Nor has which variables of experts are stacked over them.
    inner = tuple(part for part in inner if part not in ("experts", "shared"))
    if layer_range is None:
        return [("/".join(map(str, inner)), None)]
    # (..., "stacks", number of the stack, path inside a layer)
    place = inner.index("stacks")
    start = "/".join([*map(str, inner[:place]), "layers"])
    end = "/".join(map(str, inner[place + 2 :]))
    return [(f"{start}/{layer}/{end}", i) for i, layer in enumerate(layer_range)]


def _expected(entries) -> Iterator[tuple[str, tuple[int, ...]]]:
    for path, variable, layer_range in entries:
        shape = variable.shape if layer_range is None else variable.shape[1:]
        for name, _ in logical_names(path, layer_range):
            yield name, tuple(shape)


def _kept_dtype(path: tuple, parts: list) -> np.dtype:
    """That of a matrix, an embedding or a core in 16 bits; float32 for everything else."""
    dtype = np.dtype(parts[0].dtype)
    is_matrix = (path[-1] in ("kernel", "table") and len(parts[0].shape) == 2) or "cores" in path
    return dtype if is_matrix and dtype.itemsize == 2 else np.dtype(np.float32)


def _copied(parts: list, stacked: bool, dtype) -> jax.Array:
    """One array, or several on a new leading axis; copied on the host, one after the other."""
    if any(isinstance(part, jax.Array) for part in parts):
        arrays = [jnp.array(part, dtype) for part in parts]
        return jnp.stack(arrays) if stacked else arrays[0]
    shape = (len(parts),) * stacked + tuple(parts[0].shape)
    copy = _aligned(shape, dtype)
    for place, part in zip(copy if stacked else [copy], parts, strict=True):
        place[...] = np.asarray(part)
    return jax.device_put(copy)


def _aligned(shape: tuple[int, ...], dtype) -> np.ndarray:
    """An array whose memory jax takes over on a CPU, without another copy."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    # bytes up to the next multiple of 64
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


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
        tensor = np.asarray(tensor)
        if is_floating(tensor) and not (finite := np.isfinite(tensor)).all():
            bad.append(
                f"{name} ({tensor.size - np.count_nonzero(finite)} of {tensor.size} elements)"
            )
    if bad:
        raise ValueError(
            f"{where} holds weights that are NaN or infinite: {checks.listed(bad)}. The checkpoint "
            "is damaged or its training diverged; use an earlier one."
        )
