"""Folders with models: load any supported one, save ours, export to Hugging Face."""

import contextlib
import os
import pathlib
from collections.abc import Mapping

import numpy as np
from flax import nnx

from mpojax import checks, files, models, tokenizer_folders
from mpojax.compression.matrices import matrices_of
from mpojax.io import generation_config, module_format, other_folders, own_format, quantization
from mpojax.io.gguf import weights as gguf_models
from mpojax.io.hf import checkpoints, factored
from mpojax.io.hf.family import COMMON
from mpojax.io.other_folders import CONFIG_NAME, WEIGHTS_NAME
from mpojax.io.sources import local_folder, locate
from mpojax.io.weights import (
    check_version,
    read_checkpoint,
    read_metadata,
    write_folder,
)
from mpojax.models.arrays import check_finite

# Entry in the header of every weight file written here, and in config.json of our own format: what
# marks a folder as ours.
MARK = "mpojax"
# "huggingface_mpo": factors, with the code that multiplies them; see `hf.factored`.
FORMATS = ("mpojax", "huggingface", "huggingface_mpo")
_SAVING = {"format": checks.one_of(*FORMATS), "dtype": checks.one_of(*quantization.DTYPES)}


def load_pretrained(
    source: str | os.PathLike,
    *,
    pretraining_head: bool = False,
    into: nnx.Module | None = None,
    keep_16_bits: bool = False,
) -> nnx.Module:
    """Loads a model from a folder written by `save_pretrained`, of Hugging Face, or a GGUF file.

    Of Hugging Face:
      BERT, ALBERT, DistilBERT, MobileBERT, ELECTRA, RoBERTa, XLM-RoBERTa, CamemBERT, MPNet and
        DeBERTa-v2: encoders, classifiers of sequences and of tokens, question answering models.
        Pre-training heads are left out, unless they are asked for. ModernBERT: the encoder alone.
      GPT-2, LLaMA 1 to 3, Mistral, Qwen2 and 3, SmolLM3, Gemma 2 and 3 (text), Phi-3 and 4, OLMo-2,
        GPT-NeoX and Pythia, OPT; with experts Mixtral, Qwen2-MoE, Qwen3-MoE, OLMoE: a
        `models.LanguageModel`. With labels of texts or tokens: a `models.SequenceClassifier` or
        `models.TokenClassifier`; without an output map: a `models.Decoder`.
      T5 1.0 and 1.1, mT5 and umT5: a `models.EncoderDecoder`; their EncoderModel: a
        `models.SourceEncoder`.
    GGUF: architecture "llama", any quantisation that the package gguf can undo; its tokenizer is
      `io.gguf_tokenizer(path)`.

    Args:
      source: folder with config.json and safetensors weights; a file `*.gguf`, or a folder with one
        and no config.json (needs the optional package gguf); `package:NAME/PATH` for those of an
        installed package; or, where there is no such path, a hub id. See `locate`.
      pretraining_head: of Hugging Face's BERT, ALBERT and RoBERTa, keep the heads for masked words
        and for the order of sentences: a `models.PretrainingModel`, where the checkpoint has them.
      into: for a module of your own, a dense one of the same class, which stays as it is: its copy
        gets the weights, chains and adapters of the folder.
      keep_16_bits: matrices that are stored in bfloat16 or float16 stay so in memory, half of what
        float32 needs; they are computed with in `config.dtype` all the same. To compress and to
        evaluate large models, not to train them.

    Raises:
      FileNotFoundError: no such folder, no config.json, no weights.
      ValueError: an unsupported architecture or setting, weights that do not fit name by name,
        corrupt or non-finite weights, or weights in a pickle format.
      ConnectionError, PermissionError: the hub cannot be reached, or a gated model.
      ImportError: a hub id without huggingface_hub, a GGUF file without gguf.

    Example:

        >>> import tempfile
        >>> import mpojax as mj
        >>> from flax import nnx
        >>> from mpojax import models
        >>> sizes = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "intermediate_size": 32}
        >>> model = models.build(models.EncoderConfig(vocab_size=99, **sizes), rngs=nnx.Rngs(0))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     mj.save(model, folder)
        ...     same = mj.load(folder)
        >>> same.config == model.config
        True

    A module of your own:

        >>> own = nnx.Sequential(nnx.Linear(64, 64, rngs=nnx.Rngs(0)), nnx.relu)
        >>> small, report = mj.compress(own, bond=8)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     mj.save(small, folder)
        ...     same = mj.load(folder, into=own)
        >>> type(same.layers[0]).__name__
        'MPOLinear'
    """
    folder = locate(source)
    content = _read_config(folder) if folder.is_dir() else {}
    _check_into(folder, content, into)
    if into is not None:
        return _into_module(folder, content[MARK], into)
    stored = _opened(folder, content, pretraining_head)
    return stored.load(keep_16_bits=keep_16_bits, release=True)


def open_pretrained(
    source: str | os.PathLike, *, check: bool = True, pretraining_head: bool = False
) -> models.StoredModel:
    """A model whose arrays are read from its files when they are used, one by one.

    `compression.compress` and `compression.calibrate` take it as it is: of a decoder a layer at a
    time is in memory. `.load()` is the whole model.

    Args:
      source, pretraining_head: see `load_pretrained`. The weights of a GGUF file that is checked
        are in memory.
      check: reads all weights once and checks that they are finite; False reads the headers of the
        files alone.

    Raises:
      As `load_pretrained`.

    Example:

        >>> import tempfile
        >>> import mpojax as mj
        >>> from flax import nnx
        >>> from mpojax import io, models
        >>> sizes = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "intermediate_size": 32}
        >>> model = models.build(models.DecoderConfig(vocab_size=99, **sizes), rngs=nnx.Rngs(0))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     mj.save(model, folder)
        ...     stored = io.open_pretrained(folder)
        ...     small, report = mj.compress(stored, budget=0.95)
        >>> report.parameters <= 0.95 * report.dense_parameters
        True
    """
    folder = locate(source)
    content = _read_config(folder) if folder.is_dir() else {}
    _check_into(folder, content, None)
    return _opened(folder, content, pretraining_head, check)


def _opened(
    folder: pathlib.Path, content: Mapping, pretraining_head: bool, check: bool = True
) -> models.StoredModel:
    if not folder.is_dir():
        config, arrays = gguf_models.import_file(folder, check)
        return models.StoredModel(config, {}, arrays)
    if MARK in content:
        return _own_model(folder, content[MARK], check)
    if factored.ENTRY in content:
        raise ValueError(
            f"{folder} holds a compressed model for transformers (format='huggingface_mpo'), which "
            "is not read back: load the folder of mj.save(model, folder) with the same model."
        )
    checkpoints.family_of(content, str(folder))  # Before weights are looked for.
    tensors = read_checkpoint(folder)
    if check:
        check_finite(tensors, str(folder))
    config, arrays = checkpoints.import_model(content, tensors, str(folder), pretraining_head)
    return models.StoredModel(generation_config.read(config, folder), {}, arrays)


def save_pretrained(
    model: nnx.Module,
    folder: str | os.PathLike,
    *,
    format: str = "mpojax",
    dtype: str = "float32",
    tokenizer_from: str | os.PathLike | None = None,
):
    """Writes config.json and model.safetensors (logical names, cores as they are).

    Arrays are written in the type that the model holds them in: float32, or bfloat16 of a model
    that was loaded so and of what was compressed of it.

    Args:
      model: any model, or any Flax NNX module: `load(folder, into=...)` puts it back.
      folder: new, empty, or written by this library before.
      format: "mpojax"; "huggingface" for what `export_huggingface` writes, of a dense model; or
        "huggingface_mpo": chains stay chains, and a file of code next to them makes transformers
        load them, by `AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)` and its
        like, with torch and without this library.
      dtype: of the cores of chains: "int8" keeps 8 bits and a scale for each column, and is
        multiplied out on loading; all else stays as it is.
      tokenizer_from: folder whose tokenizer files are copied along; where its config.json alone
        tells the class, tokenizer_config.json of the copy names it.

    Raises:
      FileExistsError: the folder holds something that this library did not write.
      ValueError: weights that are NaN or infinite.
      FileNotFoundError: `tokenizer_from` holds no tokenizer files (ValueError: damaged ones).
      OSError: the folder cannot be written or the disk is full; see `write_folder`.

    Example:

        >>> import json, pathlib, tempfile
        >>> import mpojax as mj
        >>> from flax import nnx
        >>> from mpojax import models
        >>> sizes = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "intermediate_size": 32}
        >>> model = models.build(models.EncoderConfig(vocab_size=99, **sizes), rngs=nnx.Rngs(0))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     mj.save(model, folder, format="huggingface")
        ...     json.loads((pathlib.Path(folder) / "config.json").read_text())["model_type"]
        'bert'
    """
    checks.check({"format": format, "dtype": dtype}, _SAVING)
    if dtype == "int8":
        _check_has_chains(model, "dtype='int8'")
    if format == "huggingface":
        export_huggingface(model, folder, tokenizer_from=tokenizer_from)
        return
    if format == "huggingface_mpo":
        _check_has_chains(model, "format='huggingface_mpo'")
        _export_factors(model, folder, dtype, tokenizer_from)
        return
    arrays = _checked_arrays(model, folder)
    is_own_model = isinstance(model, models.Model)
    description = (own_format if is_own_model else module_format).describe(model)
    if dtype == "int8":
        arrays = quantization.quantized(arrays, quantization.core_names(arrays))
    fingerprint = own_format.fingerprint(arrays, description)
    content = {"model_type": "mpojax", MARK: {**description, "fingerprint": fingerprint}}
    _write(folder, content, arrays, {MARK: fingerprint}, tokenizer_from)


def export_huggingface(
    model: models.Model,
    folder: str | os.PathLike,
    *,
    tokenizer_from: str | os.PathLike | None = None,
):
    """Writes a folder that transformers loads, by `AutoModel.from_pretrained` and its like.

    Language models load by `AutoModelForCausalLM` and `AutoModelForSeq2SeqLM`.

    Args:
      model: a dense model; `merge` one in MPO form first. One with experts has no counterpart.
      folder: new, empty, or written by this library before.
      tokenizer_from: folder whose tokenizer files are copied along; where its config.json alone
        tells the class, tokenizer_config.json of the copy names it.

    Raises:
      ValueError: the model has MPO matrices, no counterpart in transformers, or non-finite weights.
      FileExistsError: the folder holds something that this library did not write.
      FileNotFoundError: `tokenizer_from` holds no tokenizer files (ValueError: damaged ones).
      OSError: the folder cannot be written or the disk is full; see `write_folder`.
    """
    _check_exported(model, "huggingface")
    if model.shapes and not model.config.experts:
        raise ValueError(
            f"the model has {len(model.shapes)} matrices in MPO form (such as "
            f"{next(iter(model.shapes))}), which transformers cannot load as they are. Save it "
            "with format='huggingface_mpo', which keeps them, or make it dense first, "
            "export_huggingface(merge(model), folder)."
        )
    arrays = _checked_arrays(model, folder)
    content, tensors = checkpoints.export_model(model.config, arrays)
    _write_export(model, folder, content, tensors, tokenizer_from)


def _export_factors(model, folder, dtype: str, tokenizer_from):
    """Writes a folder with factors and the code that multiplies them, see `hf.factored`."""
    _check_exported(model, "huggingface_mpo")
    if model.config.shares_parts:
        model = models.unshared(model)  # its format has layers of their own
    arrays = _checked_arrays(model, folder)
    content, tensors, code = factored.export_model(model.config, model.shapes, arrays, dtype)
    _write_export(model, folder, content, tensors, tokenizer_from, {factored.FILE: code})


def _check_exported(model: nnx.Module, format: str):
    if not isinstance(model, models.Model):
        raise ValueError(
            f"transformers knows no {type(model).__name__}; format={format!r} is for models of "
            "mpojax."
        )


def _check_has_chains(model: nnx.Module, what: str):
    if not matrices_of(model).shapes:
        raise ValueError(f"{what} is about the cores of chains, but the model is dense.")


def _write_export(model, folder, content: dict, tensors: Mapping, tokenizer_from, texts=()):
    texts = dict(texts)
    if model.config.generates:
        texts[generation_config.NAME] = own_format.to_json(generation_config.written(model.config))
    # transformers requires the entry "format".
    metadata = {"format": "pt", MARK: "export"}
    _write(folder, content, tensors, metadata, tokenizer_from, texts)


def _checked_arrays(model: nnx.Module, folder: str | os.PathLike) -> dict[str, np.ndarray]:
    """Arrays of a model that may be written into the folder."""
    check_ours(files.at(folder))
    is_own_model = isinstance(model, models.Model)
    arrays = models.to_arrays(model) if is_own_model else module_format.arrays(model)
    check_finite(arrays, "the model")
    return arrays


def _write(folder, content: dict, tensors: Mapping, metadata: Mapping, tokenizer_from, texts=()):
    texts = {**dict(texts), CONFIG_NAME: own_format.to_json(content)}
    outdated = {factored.FILE} - set(texts)
    if tokenizer_from is not None:
        source = local_folder(tokenizer_from)
        copies = tokenizer_folders.copies(
            source, content["model_type"].removeprefix(factored.PREFIX)
        )
        if not copies:
            names = ", ".join(tokenizer_folders.FILES)
            raise FileNotFoundError(f"tokenizer_from={source} holds none of {names}.")
        texts |= copies
        outdated |= set(tokenizer_folders.FILES) - set(copies)  # of another kind: would be read
    write_folder(files.at(folder), tensors, metadata, texts, outdated)


def _read_config(folder: pathlib.Path) -> dict:
    if not (folder / CONFIG_NAME).is_file():
        raise other_folders.without_config(folder)
    return checks.read_json(folder / CONFIG_NAME, COMMON)


def _check_into(folder: pathlib.Path, content: Mapping, into: nnx.Module | None):
    name = (content.get(MARK) or {}).get(module_format.MODULE)
    if name is not None and into is None:
        raise ValueError(
            f"{folder} holds the weights of a module of your own: give a dense one of its class, "
            f"load(folder, into={checks.cut(str(name), 80)}(...))."
        )
    if name is None and into is not None:
        raise ValueError(f"{folder} holds a whole model; load it without into=.")


def _own_tensors(folder: pathlib.Path, content: Mapping, versions, check: bool = True) -> dict:
    """The arrays of a folder of ours, which is of a known version and of one save."""
    tensors = read_checkpoint(folder)
    if check:
        check_finite(tensors, str(folder))
    check_version(content.get("format_version"), versions, str(folder))
    if content.get("fingerprint") != read_metadata(folder / WEIGHTS_NAME).get(MARK):
        raise ValueError(
            f"{CONFIG_NAME} and {WEIGHTS_NAME} in {folder} are not from the same save; copy both "
            "files of one save."
        )
    return tensors


@contextlib.contextmanager
def _complete(folder: pathlib.Path):
    """Errors inside it say that a folder of ours is not complete."""
    try:
        yield
    except (TypeError, KeyError, ValueError) as error:
        reason = checks.cut(str(error), 1200)
        raise ValueError(f"{folder} is not a complete mpojax model: {reason}") from error


def _own_model(folder: pathlib.Path, content: Mapping, check: bool) -> models.StoredModel:
    tensors = _own_tensors(folder, content, own_format.READ_VERSIONS, check)
    with _complete(folder):
        return own_format.read(content, quantization.dequantized(tensors)).checked()


def _into_module(folder: pathlib.Path, content: Mapping, into: nnx.Module) -> nnx.Module:
    tensors = _own_tensors(folder, content, module_format.READ_VERSIONS)
    with _complete(folder):
        tensors = quantization.dequantized(tensors)
        arrays = {name: np.asarray(tensor) for name, tensor in tensors.items()}
        return module_format.build(content, arrays, into)


def check_ours(folder: pathlib.Path):
    """Refuses a folder with content that `write_folder` did not make; half-written ones pass."""
    if not folder.is_dir():
        return
    names = sorted(path.name for path in folder.iterdir() if not files.is_leftover(path))
    if names and not _has_our_mark(folder, names):
        raise FileExistsError(
            f"{folder} holds {checks.listed(names, limit=5)}, not a model saved by mpojax; choose "
            "a new or empty folder. Nothing has been changed."
        )


def _has_our_mark(folder: pathlib.Path, names: list[str]) -> bool:
    """True if the weights, or a configuration that lost its weights, come from here."""
    try:
        if names == [CONFIG_NAME]:
            return MARK in _read_config(folder)
        return MARK in read_metadata(folder / WEIGHTS_NAME)
    except (FileNotFoundError, ValueError):
        return False
