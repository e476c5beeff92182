"""Models made of another one: other settings, heads, sharing, experts without a capacity."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from flax import nnx

from mpojax import mpo, nn
from mpojax.models import heads
from mpojax.models.arrays import array_shapes, from_arrays, to_arrays
from mpojax.models.config import EncoderConfig
from mpojax.models.model import Model
from mpojax.models.stack import TransformerStack


def reconfigure(model: Model, **changes) -> Model:
    """The same parameters under changed settings that leave every array as it is.

    For example `reconfigure(model, dtype="bfloat16", remat=True, dropout=0.0)`.
    """
    config = dataclasses.replace(model.config, **changes)
    return from_arrays(config, model.shapes, to_arrays(model), keep_16_bits=True)


def unstacked(model: Model) -> Model:
    """The same parameters with every layer stored by itself: for decoding token by token on CPUs.

    A scan over stacked layers copies the matrices of each layer out of the stack before it
    multiplies, which costs more than a product with one token; layers by themselves are read where
    they are. The program is compiled layer by layer: slower, in proportion to the depth.

    Example:
      >>> from flax import nnx
      >>> from mpojax import models
      >>> sizes = {"hidden_size": 16, "num_layers": 3, "num_heads": 2, "intermediate_size": 32}
      >>> model = models.build(models.DecoderConfig(vocab_size=99, **sizes), rngs=nnx.Rngs(0))
      >>> len(model.tower.stacks), len(models.unstacked(model).tower.stacks)
      (1, 3)
    """
    config = model.config
    depth = max(stack.num_layers for stack in config.stacks)
    boundaries = tuple(block.start for block in config.blocks(depth)[1:])
    return reconfigure(model, scan_boundaries=boundaries)


def unshared(model: Model) -> Model:
    """The same function with parameters of its own for every layer (copies, on the host)."""
    config = dataclasses.replace(model.config, layer_groups=None, shared_roles=nn.ROLES)
    if not model.config.shares_everything:
        shapes = model.shapes
    else:
        shapes = dict(_for_each_layer(model.config, model.shapes))
    own = to_arrays(model)
    arrays = {name: own.get(name) for name in array_shapes(config, shapes)}
    # What the first layer of a block holds for all of it goes to each layer that has none.
    for name, array in _for_each_layer(model.config, own):
        if arrays.get(name) is None:
            arrays[name] = array
    return from_arrays(config, shapes, arrays)


def _for_each_layer(config: EncoderConfig, entries: Mapping) -> Iterator[tuple[str, object]]:
    """Entries by path; those of the first layer of a block once for every layer of it."""
    for path, entry in entries.items():
        head, _, rest = path.partition("/")
        layer, _, inner = rest.partition("/")
        block = config.block_of(int(layer)) if head == "layers" else range(0)
        if head != "layers" or int(layer) != block.start:
            yield path, entry
        else:
            for copy in block:
                yield f"layers/{copy}/{inner}", entry


def with_head(
    model: Model,
    num_labels: int,
    *,
    pooling: str | None = None,
    head: str = "classifier",
    label_names: Sequence[str] = (),
    rngs: nnx.Rngs,
) -> heads.ModelWithHead:
    """A model on the encoder of `model`, with a fresh head (and pooler, where there was none).

    Args:
      model: an encoder, or a model whose heads are thrown away.
      num_labels: outputs; 1 for a regression, 2 for a span.
      pooling: "pooler", "mean" or "first"; None keeps that of `model`. Pooler parameters that the
        new pooling does not use are dropped. Heads on every token read no sentence vector: they
        drop them whatever is given here.
      head: "classifier", "span" or "tokens".
      label_names: of the classes, which exports name; those of a former head are forgotten.
      rngs: for the fresh parameters: a matrix of variance 1 / hidden size, zero bias.

    Raises:
      ValueError: not one label name for each output.
    """
    pooling = model.config.pooling if pooling is None else pooling
    pooling = pooling if head == "classifier" else "none"
    changes = {"num_labels": num_labels, "pooling": pooling, "head": head, "masked_lm": False}
    config = dataclasses.replace(model.config, **changes).with_label_names(label_names)
    sizes = config.matrix_sizes()
    shapes = {path: s for path, s in model.shapes.items() if path in sizes and path != "head"}
    arrays = {p: a for p, a in to_arrays(model).items() if not is_of_head(p)}
    if pooling != "pooler":
        arrays = {p: a for p, a in arrays.items() if not p.startswith("pooler/")}
    for path in ("head", "pooler"):
        if path in sizes and not any(p.startswith(f"{path}/") for p in arrays):
            fresh = nn.Dense(*sizes[path], rngs=rngs)
            arrays[f"{path}/kernel"] = np.asarray(fresh.kernel[...])
            arrays[f"{path}/bias"] = np.asarray(fresh.bias[...])
    return from_arrays(config, shapes, arrays)


def is_of_head(path: str) -> bool:
    """True for an array of a head, by its path: of a task, of pre-training, or an output map."""
    return path.startswith(("head/", "masked_lm/"))


def head_columns(
    model: heads.SequenceClassifier,
    start: int,
    stop: int,
    *,
    scale: float = 1.0,
    shift: float = 0.0,
) -> heads.SequenceClassifier:
    """The model whose outputs are `scale * outputs[start:stop] + shift` of `model`.

    A linear head on the same sentence vector is a set of independent columns, thus the smaller
    model gives just these outputs. A head in MPO form becomes dense: its columns share cores.

    Raises:
      ValueError: the model has no classifier's head, or not these columns.
    """
    if not isinstance(model, heads.SequenceClassifier):
        raise ValueError(
            f"only a SequenceClassifier has outputs to choose from, not a {type(model).__name__}."
        )
    if not 0 <= start < stop <= model.config.num_labels:
        raise ValueError(
            f"columns {start}:{stop} must be some of the head's {model.config.num_labels}."
        )
    arrays = to_arrays(model)
    shape = model.shapes.get("head")
    if shape is not None:
        cores = [arrays.pop(f"head/cores/{i}") for i in range(shape.num_arrays)]
        arrays["head/kernel"] = np.asarray(mpo.to_matrix(cores, shape))
    # scale (h W + b) + shift = h (scale W) + (scale b + shift)
    for name in ("head/kernel", "head/bias"):
        arrays[name] = arrays[name][..., start:stop] * np.float32(scale)
    arrays["head/bias"] = arrays["head/bias"] + np.float32(shift)
    names = model.config.label_names[start:stop]
    config = dataclasses.replace(model.config, num_labels=stop - start).with_label_names(names)
    shapes = {path: shape for path, shape in model.shapes.items() if path != "head"}
    return from_arrays(config, shapes, arrays)


def dropless(model: Model) -> Model:
    """The same parameters, with experts that take every token sent to them.

    Under a `capacity_factor` what a token becomes depends on how many other tokens of a call chose
    its expert: right for the speed of training, wrong where texts are generated or scored one by
    one. Nothing is copied; works under jax transformations, too.
    """
    config = model.config
    if all(settings.capacity_factor is None for _, settings in config.experts):
        return model
    experts = tuple((pattern, _without_capacity(settings)) for pattern, settings in config.experts)
    # Modules of its own on the same variables: their settings change without those of `model`.
    result = nnx.merge(*nnx.split(model))
    result.config = dataclasses.replace(config, experts=experts)
    for _, module in nnx.iter_modules(result):
        if isinstance(module, nn.ExpertFeedForward):
            settings = _without_capacity(module.block.settings)
            module.block = dataclasses.replace(module.block, settings=settings)
        elif isinstance(module, TransformerStack):
            module.config = result.config
    return result


def _without_capacity(settings):
    if settings.capacity_factor is None:
        return settings
    return dataclasses.replace(settings, capacity_factor=None, dispatch="auto")
