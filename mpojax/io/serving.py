"""Compiled programs of a model as files (extra `serving`), for jax without this library.

A folder of `export_serving` holds `model.safetensors`, programs of `jax.export` and `serving.json`,
which says what each takes and gives. Any process loads them with jax, safetensors and flatbuffers:

    import jax.export, safetensors.flax

    weights = safetensors.flax.load_file("served/model.safetensors")
    with open("served/forward.jax_export", "rb") as file:
        forward = jax.jit(jax.export.deserialize(bytearray(file.read())).call)
    logits = forward(weights, input_ids, attention_mask)

The shapes are fixed: jax compiles each program once, for the machine it runs on.
"""

import importlib.util
import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from mpojax import checks, files, models
from mpojax.io import folders
from mpojax.io.weights import write_folder
from mpojax.models.model import check_length

_SUFFIX = ".jax_export"
_DESCRIPTION = "serving.json"
_VERSION = 1
_PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def export_serving(
    model: models.Model,
    folder: str | os.PathLike,
    *,
    batch_size: int = 1,
    length: int = 128,
    max_new_tokens: int = 128,
    platforms: Sequence[str] | None = None,
) -> None:
    """Writes the compiled forward pass, and the steps of generation of a decoder, into a folder.

    With S = `length`, C = S + `max_new_tokens` and B = `batch_size`, all integers int32:

    | program | takes, after the weights | gives |
    | --- | --- | --- |
    | `forward` of an encoder | input_ids, attention_mask, token_type_ids (B, S) | its output |
    | `forward` of a decoder | input_ids, attention_mask (B, S) | logits (B, S, vocabulary) |
    | `prefill` | input_ids (B, S), attention_mask (B, C) | logits (B, vocabulary), cache |
    | `decode` | token (B,), attention_mask (B, C), cache | logits (B, vocabulary), cache |

    Logits are float32. Shorter prompts are padded on the left, texts of an encoder on the right;
    attention_mask is 0 there and 1 elsewhere. The cache is a dict of arrays, passed on as it is.
    Matrices in MPO form stay chains, applied as `mpo.plan` chooses for these shapes on this
    machine.

    Args:
      model: an encoder, with a head or without, or a decoder.
      folder: new, empty, or written by this library before.
      batch_size, length: of all inputs.
      max_new_tokens: tokens that the cache holds beyond a prompt.
      platforms: some of "cpu", "cuda", "rocm", "tpu"; None = where jax runs now.

    Raises:
      ValueError: an encoder-decoder, sizes that the model does not have, unknown platforms.
      FileExistsError: the folder holds something that this library did not write.
      ImportError: flatbuffers is not installed, by which jax writes programs.
      OSError: the folder cannot be written or the disk is full.

    Example:

        io.export_serving(model, "served", length=256, max_new_tokens=64, platforms=("cpu", "cuda"))

    Source: https://docs.jax.dev/en/latest/export/export.html
    """
    sizes = {"batch_size": batch_size, "length": length, "max_new_tokens": max_new_tokens}
    checks.check(sizes, dict.fromkeys(sizes, checks.integer(1)))
    platforms = (jax.default_backend(),) if platforms is None else tuple(platforms)
    platforms = tuple("cuda" if name == "gpu" else name for name in platforms)
    checks.check_value("platforms", platforms, checks.sequence(checks.one_of(*_PLATFORMS)))
    folders.check_ours(files.at(folder))
    _need_flatbuffers()
    # With a capacity a token's expert would depend on what else is in the batch.
    weights, model_of = _weights(models.dropless(model))
    cache_length = length + max_new_tokens
    programs = _programs(model, weights, model_of, batch_size, length, cache_length)
    contents, described = {}, {}
    for name, (function, arguments) in programs.items():
        exported = jax.export.export(jax.jit(function), platforms=platforms)(weights, *arguments)
        contents[name + _SUFFIX] = bytes(exported.serialize())
        described[name] = _signature(function, weights, arguments)
    description = {
        "format_version": _VERSION,
        "jax": jax.__version__,
        "platforms": platforms,
        **sizes,
        "end_ids": getattr(model.config, "end_ids", ()),
        "pad_id": getattr(model.config, "pad_id", None),
        "programs": described,
    }
    contents[_DESCRIPTION] = json.dumps(description, indent=2) + "\n"
    arrays = {name: np.asarray(array) for name, array in weights.items()}
    write_folder(files.at(folder), arrays, {folders.MARK: "serving"}, contents)


def _need_flatbuffers() -> None:
    """Raises ImportError where jax cannot write programs."""
    if importlib.util.find_spec("flatbuffers") is None:
        raise ImportError("jax.export writes by flatbuffers: pip install -e '.[serving]'")


def _weights(model: models.Model) -> tuple[dict[str, jax.Array], Callable[[Mapping], Any]]:
    """({name: array}, the function that makes the model of such arrays)."""
    paths, structure = jax.tree_util.tree_flatten_with_path(model)
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in paths]
    arrays = {name: array for name, (_, array) in zip(names, paths, strict=True)}
    return arrays, lambda given: jax.tree.unflatten(structure, [given[name] for name in names])


def _programs(
    model: models.Model,
    weights: Mapping,
    model_of: Callable,
    batch: int,
    length: int,
    cache_length: int,
) -> dict[str, tuple]:
    """{name: (function of weights and arguments, shapes of the arguments)}."""
    rows, mask = _ids(batch, length), _ids(batch, cache_length)
    if isinstance(model.config, models.EncoderConfig):
        check_length(model.config, length)

        def encode(weights, input_ids, attention_mask, token_type_ids):
            return model_of(weights)(input_ids, attention_mask, token_type_ids)

        return {"forward": (encode, (rows, rows, rows))}
    if not models.predicts_next(model):
        raise ValueError(
            f"export_serving takes encoders and decoders; a {type(model).__name__} is neither."
        )
    check_length(model.config, cache_length)

    def forward(weights, input_ids, attention_mask):
        return model_of(weights)(input_ids, attention_mask)

    def step(weights, input_ids, attention_mask, cache):
        output = model_of(weights).forward(
            input_ids, attention_mask, cache=models.Cache(**cache), last_only=True
        )
        cache = {"keys": output.cache.keys, "values": output.cache.values}
        # (B, 1, vocabulary) -> (B, vocabulary): only the last position was computed.
        return output.logits[:, 0], cache | {"position": output.cache.position}

    def empty(weights):
        cache = model_of(weights).start_cache(batch, cache_length)
        return {"keys": cache.keys, "values": cache.values, "position": cache.position}

    def prefill(weights, input_ids, attention_mask):
        return step(weights, input_ids, attention_mask, empty(weights))

    def decode(weights, token, attention_mask, cache):
        return step(weights, token[:, None], attention_mask, cache)

    cache = jax.eval_shape(empty, weights)
    return {
        "forward": (forward, (rows, rows)),
        "prefill": (prefill, (rows, mask)),
        "decode": (decode, (jax.ShapeDtypeStruct((batch,), jnp.int32), mask, cache)),
    }


def _ids(batch: int, length: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((batch, length), jnp.int32)


def _signature(function: Callable, weights: Mapping, arguments: Sequence) -> dict[str, Any]:
    """What a program takes after the weights, by name, and gives."""
    # Without `weights`.
    names = function.__code__.co_varnames[1 : function.__code__.co_argcount]
    takes = dict(zip(names, arguments, strict=True))
    gives = jax.eval_shape(function, weights, *arguments)

    def described(tree):
        return jax.tree.map(lambda leaf: f"{leaf.dtype}{list(leaf.shape)}", tree)

    return {"takes": described(takes), "gives": described(gives)}
