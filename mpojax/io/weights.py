"""Weight files: safetensors only, read whole or not at all; never pickle."""

import contextlib
import json
import math
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from mpojax import checks, files, models
from mpojax.io import other_folders
from mpojax.io.other_folders import CONFIG_NAME, INDEX_NAME, WEIGHTS_NAME

# So many layers are quickly enumerated, and the tensors that are missing named.
_FEW_LAYERS = 500
# Of the types in headers that numpy does not know.
_DTYPES = {"BF16": jnp.bfloat16, "F16": np.float16, "F32": np.float32, "F64": np.float64}
_MAP = checks.mapping(checks.text(255))
_INDEX = {
    "weight_map": checks.Allowed(
        f"{_MAP.what}, one or more", lambda value: _MAP.accepts(value) and len(value) > 0
    )
}


def find_weight_files(folder: str | os.PathLike) -> list[pathlib.Path]:
    """The safetensors files of a checkpoint folder: one, or the shards that its index names.

    Raises:
      ValueError: only files that would need unpickling, or a broken index.
      FileNotFoundError: no weights at all, or shards are missing.
    """
    folder = files.local(folder)
    if (folder / WEIGHTS_NAME).is_file():
        return [folder / WEIGHTS_NAME]
    if (folder / INDEX_NAME).is_file():
        shards = [folder / name for name in sorted(set(_read_index(folder / INDEX_NAME).values()))]
        if lost := [shard.name for shard in shards if not shard.is_file()]:
            raise FileNotFoundError(
                f"{folder} lacks the shards {checks.listed(lost)} of {INDEX_NAME}."
            )
        return shards
    raise other_folders.without_weights(folder)


def read_checkpoint(folder: str | os.PathLike) -> dict[str, files.StoredArray]:
    """All tensors of a checkpoint folder, from one file or from shards, to be read one by one.

    Raises:
      ValueError: see `find_weight_files` and `read_weights`; or the shards do not hold exactly the
        tensors that the index promises, each once.
    """
    shards = find_weight_files(folder)
    if shards[0].name == WEIGHTS_NAME:
        return _stored(shards[0])
    tensors: dict[str, files.StoredArray] = {}
    for shard in shards:
        part = _stored(shard)
        twice = sorted(set(part) & set(tensors))
        checks.check_none(twice, f"{shard} repeats tensors of another shard")
        tensors.update(part)
    index = files.local(folder) / INDEX_NAME
    promised = set(_read_index(index))
    if promised != set(tensors):
        missing, more = sorted(promised - set(tensors)), sorted(set(tensors) - promised)
        raise ValueError(
            f"{index} does not match its shards: missing {checks.shortened(missing)}, "
            f"unexpected {checks.shortened(more)}. Download the checkpoint again."
        )
    return tensors


def _stored(path: pathlib.Path) -> dict[str, files.StoredArray]:
    """The tensors of a file; what is read is not kept in memory, as a mapped file would be."""
    with _opened(path) as file:
        views = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        floating = {name: view for name, view in views.items() if view.get_dtype() in _DTYPES}
        others = {name: file.get_tensor(name) for name in views.keys() - floating.keys()}
    starts = _starts(path)
    stored = {name: _stored_tensor(path, starts[name], view) for name, view in floating.items()}
    return stored | {
        n: files.StoredArray(t.shape, t.dtype, lambda t=t: t) for n, t in others.items()
    }


def _starts(path: pathlib.Path) -> dict[str, int]:
    """First byte of each tensor, of a file whose header has been checked."""
    with path.open("rb") as file:
        # Layout of safetensors: 8 bytes with the length of the header, the header, the data, in
        # which offsets start at 0.
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    header.pop("__metadata__", None)
    return {name: 8 + size + entry["data_offsets"][0] for name, entry in header.items()}


def _stored_tensor(path: pathlib.Path, start: int, view) -> files.StoredArray:
    shape, dtype = view.get_shape(), np.dtype(_DTYPES[view.get_dtype()])

    def read() -> np.ndarray:
        size = math.prod(shape) * dtype.itemsize
        return np.fromfile(path, np.uint8, size, offset=start).view(dtype).reshape(shape)

    return files.StoredArray(shape, dtype, read)


def read_weights(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """All tensors of one safetensors file.

    Raises:
      FileNotFoundError: no such file.
      ValueError: a pickle format, or a corrupt or truncated file.
    """
    path = files.local(path)
    if path.suffix in other_folders.PICKLE_SUFFIXES:
        raise ValueError(f"{path} is not a safetensors file. {other_folders.how_to_convert(path)}")
    with _opened(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def read_metadata(path: str | os.PathLike) -> dict[str, str]:
    """The text entries in the header of a safetensors file; raises as `read_weights` does."""
    if files.is_remote(path):  # without the tensors, which may be many
        path = files.at(path)
        size = int.from_bytes(path.read_range(0, 8), "little")
        header = checks.parse_json(path.read_range(8, 8 + size).decode("utf-8"), f"{path} is")
        return header.get("__metadata__") or {}
    with _opened(pathlib.Path(path)) as file:
        return file.metadata() or {}


def check_version(version: Any, known: Sequence[int], source: str) -> None:
    """Checks the version of a file's format.

    Raises:
      ValueError: it is none of the known ones.
    """
    if version not in known:
        raise ValueError(
            f"{source} has format version {checks.shortened(version)}; this version of mpojax "
            f"reads {', '.join(map(str, known))}. Update mpojax, or save it again by this version."
        )


def check_depth(config: models.Config, tensors: Mapping, source: str) -> None:
    """Checks that a file may hold a model of so many layers: each has at least one tensor.

    Raises:
      ValueError: it has fewer tensors than that.
    """
    depth = config.num_stored_layers * config.num_feed_forwards
    if depth > max(_FEW_LAYERS, len(tensors)):
        raise ValueError(
            f"the weights in {source} do not fit its configuration: {len(tensors)} tensors are too "
            f"few for {depth} layers (num_layers)."
        )


def write_folder(
    folder: str | os.PathLike,
    tensors: Mapping[str, np.ndarray],
    metadata: Mapping[str, str],
    texts: Mapping[str, str | bytes],
    outdated: Iterable[str] = (),
):
    """Writes model.safetensors and other small files into a folder.

    Everything goes to a temporary folder inside it first, so that an error such as a full disk
    changes nothing. Then they are renamed: an old config.json is removed, the weights come
    first and config.json last. A process killed in between leaves a folder without config.json,
    which nothing loads by mistake and which can be written again.

    Args:
      folder: made where it does not exist; temporary files of killed processes are removed.
      tensors: what model.safetensors holds.
      metadata: text entries of its header.
      texts: content of the other files, by name.
      outdated: names of files of an earlier save that are removed.

    Raises:
      OSError: the folder cannot be written or the disk is full; says what became of the old files.
    """
    folder = files.at(folder)
    made = not folder.exists()
    renamed = False
    try:
        folder.mkdir(parents=True, exist_ok=True)
        files.remove_leftovers(folder)
        with files.temporary_folder(folder) as temporary:
            files.fill(
                temporary / WEIGHTS_NAME, lambda path: _write_weights(path, tensors, metadata)
            )
            for name, content in texts.items():
                files.fill(temporary / name, content)
            renamed = True
            for name in (CONFIG_NAME, *outdated):
                (folder / name).unlink(missing_ok=True)
            # False sorts before True: config.json comes last.
            for name in (WEIGHTS_NAME, *sorted(texts, key=CONFIG_NAME.__eq__)):
                files.put(temporary / name, folder / name)
    except OSError as error:
        note = "the folder is half-written: save again" if renamed else "nothing has been changed"
        raise files.explain(error, folder, note) from error
    finally:
        if made:
            with contextlib.suppress(OSError):
                folder.rmdir()  # Only where it is still empty.


# Names of types in headers.
_TYPE_NAMES = {
    **{np.dtype(dtype): name for name, dtype in _DTYPES.items()},
    **{np.dtype(f"i{size}"): f"I{8 * size}" for size in (1, 2, 4, 8)},
    **{np.dtype(f"u{size}"): f"U{8 * size}" for size in (1, 2, 4, 8)},
    np.dtype(bool): "BOOL",
}


def _write_weights(path: pathlib.Path, tensors: Mapping, metadata: Mapping[str, str]):
    """A safetensors file, written tensor by tensor: no copy of all of them is made."""
    # Wider types first, so that every tensor is aligned; a header says where each begins.
    names = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    start = 0
    for name in names:
        shape, dtype = tensors[name].shape, tensors[name].dtype
        stop = start + math.prod(shape) * dtype.itemsize
        offsets = {"data_offsets": [start, stop]}
        header[name] = {"dtype": _TYPE_NAMES[np.dtype(dtype)], "shape": list(shape), **offsets}
        start = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    # Padded so that the data starts at a multiple of 8 bytes.
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            file.write(np.ascontiguousarray(tensors[name]).reshape(-1).view(np.uint8))


def _read_index(path: pathlib.Path) -> dict[str, str]:
    content = checks.read_json(path)
    checks.check(content, _INDEX, f"{path} is not a valid index of shards", _INDEX)
    names = content["weight_map"]
    # Names come from a file: nothing outside the folder may be opened through them.
    outside = sorted({f for f in names.values() if pathlib.PurePath(f).name != f})
    checks.check_none(outside, f"{path} names shards outside its folder")
    return names


@contextlib.contextmanager
def _opened(path: pathlib.Path) -> Iterator:
    if not path.is_file():
        if (pickled := path.with_suffix(".bin")).is_file():
            how = other_folders.how_to_convert(pickled)
            raise ValueError(f"{path.parent} holds its weights only as {pickled.name}. {how}")
        raise FileNotFoundError(f"no weight file at {path}.")
    files.check_fetched(path)
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            yield file
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"{path} ({path.stat().st_size} bytes) is not a complete safetensors file: "
            f"{checks.cut(str(error))}. It is corrupt or was cut short; copy or download it again."
        ) from error
