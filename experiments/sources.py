"""The models that a config names: where they are, their tokenizers, a line about them."""

import atexit
import shutil
import tempfile

from absl import logging

from mpojax import data, io, models


def locate(name: str, field: str = "config.model") -> str:
    """The folder or GGUF file of a model; a name means the same in every field of every config.

    Args:
      name: a folder, a GGUF file, a hub id, or `package:NAME/PATH` for a folder or GGUF file that
        an installed package carries (it is found, never imported).
      field: of the config, named in errors.

    Raises:
      ValueError: no name was given; a path that leaves its package.
      ImportError: the package is not installed.
      OSError: there is no such model (FileNotFoundError), or the hub cannot be reached.
    """
    if not name:
        raise ValueError(
            f"{field} is empty: pass --{field}=FOLDER, the folder of a checkpoint with "
            "config.json and safetensors weights."
        )
    return str(io.locate(name, f"--{field}"))


def load_tokenizer(source: str) -> tuple[data.Tokenizer, str]:
    """The tokenizer of a model that `locate` found, and the folder with its files.

    A GGUF file's is written to a temporary folder.

    Raises:
      FileNotFoundError: there is none.
      ValueError: one that is not supported.
    """
    if source.endswith(".gguf"):
        file, source = source, tempfile.mkdtemp(prefix="mpojax-tokenizer-")
        atexit.register(shutil.rmtree, source, ignore_errors=True)
        io.write_gguf_tokenizer(file, source)
    return data.Tokenizer.from_folder(source), source


def check_tokenizer(tokenizer: data.Tokenizer, vocab_size: int, where: str) -> None:
    """Raises ValueError for a tokenizer with more tokens than the model has rows."""
    if tokenizer.vocab_size > vocab_size:
        raise ValueError(
            f"the tokenizer of {where} has {tokenizer.vocab_size:,} tokens, the model "
            f"{vocab_size:,}: it does not fit; give the one that was saved with the model."
        )


def tokenizer_folder(source: str) -> str | None:
    """The folder with the tokenizer of a model, None where it has none that is supported."""
    try:
        return load_tokenizer(source)[1]
    except (FileNotFoundError, ValueError) as error:
        logging.warning("models are saved without a tokenizer: %s", error)
        return None


def describe(model) -> str:
    """One line about an encoder."""
    config, total = model.config, sum(models.count_parameters(model).values())
    return (
        f"{config.num_layers} layers, hidden {config.hidden_size}, feed-forward "
        f"{config.intermediate_size}, vocabulary {config.vocab_size:,}, {total:,} parameters"
    )
