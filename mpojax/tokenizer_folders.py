"""Tokenizer files of a model folder: their names, the class of the tokenizer, and copies.

The class may stand in config.json alone, which a copy of the tokenizer leaves behind.
"""

import json
import os
import pathlib
from collections.abc import Collection, Mapping
from typing import Any

from mpojax import checks, files

SETTINGS = "tokenizer_config.json"
FILES = (
    "tokenizer.json",
    *("vocab.txt", "vocab.json", "merges.txt", "encoder.json", "vocab.bpe"),
    SETTINGS,
    *("special_tokens_map.json", "added_tokens.json"),
    *("spiece.model", "tokenizer.model", "sentencepiece.bpe.model", "chat_template.jinja"),
)
_GENERIC = "PreTrainedTokenizerFast"
# What `data.Tokenizer.save` writes into tokenizer_config.json.
_WRITTEN_HERE = {
    *("tokenizer_class", "truncation_side", "split_special_tokens", "model_input_names"),
    *("pad_token", "bos_token", "eos_token"),
}
# A name of Python: it stands in code that messages recommend to run.
CLASS = checks.null() | checks.Allowed(
    "the name of a class",
    lambda value: isinstance(value, str) and value.isidentifier() and len(value) < 100,
)
MODEL_FIELDS = {"model_type": checks.text(200) | checks.null(), "tokenizer_class": CLASS}
# As transformers has it for folders that name no class, of the classes that are rebuilt here.
CLASS_OF_MODEL: Mapping[str, str] = {
    model: f"{name}Tokenizer"
    for name, names in (
        ("Albert", ("albert",)),
        (
            "Bert",
            ("bert", "convbert", "distilbert", "electra", "ernie", "layoutlm", "megatron-bert"),
        ),
        ("MobileBert", ("mobilebert",)),
        ("GPT2", ("codegen", "gpt2", "gpt_neo", "gptj", "opt", "phi", "starcoder2")),
        ("Roberta", ("bart", "data2vec-text", "longformer", "roberta", "roberta-prelayernorm")),
        ("Qwen2", ("qwen2", "qwen2_moe", "qwen3", "qwen3_moe")),
    )
    for model in names
}


def local(folder: str | os.PathLike) -> pathlib.Path:
    """The folder of a tokenizer on this machine: of one on a store, a copy of what is read of it.

    Raises:
      FileNotFoundError: a store has none of the files.
    """
    return files.local(folder, (*FILES, "config.json"))


def named_class(settings: Mapping[str, Any], model: Mapping[str, Any]) -> str | None:
    """The class that tokenizer_config.json or config.json names."""
    return settings.get("tokenizer_class") or model.get("tokenizer_class")


def class_of(settings: Mapping[str, Any], model: Mapping[str, Any], *, is_whole: bool):
    """The class of a folder's tokenizer: the one that is named, or the model's, or None.

    Args:
      settings: tokenizer_config.json.
      model: config.json.
      is_whole: whether there is a tokenizer.json.
    """
    by_model = CLASS_OF_MODEL.get(model.get("model_type"))
    if model.get("model_type") == "qwen2":
        return by_model  # its folders are known to name others, which transformers ignores, too
    if by_model == "AlbertTokenizer" and not is_whole:
        by_model = None  # Chinese ALBERT models have vocab.txt, which is BERT's
    return named_class(settings, model) or by_model


def is_written_here(names: Collection[str], class_name: str | None) -> bool:
    """True if settings of these names, with this class, are what `data.Tokenizer.save` writes."""
    return class_name == _GENERIC and _WRITTEN_HERE.issuperset(names)


def copies(folder: pathlib.Path, model_type: str | None = None) -> dict[str, bytes]:
    """{name: content} of the tokenizer's files, for a folder with another config.json or none.

    tokenizer_config.json names the class, so that the copy gives the same ids.

    Args:
      folder: with a tokenizer.
      model_type: in the config.json of the other folder.

    Raises:
      ValueError: the folder's files do not tell the class; or they are damaged.
    """
    found = {n: (folder / n).read_bytes() for n in FILES if (folder / n).is_file()}
    settings = _read(folder / SETTINGS, {"tokenizer_class": CLASS})
    new = _settings_of_copy(folder, found, settings, model_type)
    if found and new != settings:
        found[SETTINGS] = (json.dumps(new, indent=2, ensure_ascii=False) + "\n").encode()
    return found


def _settings_of_copy(folder, names: Collection[str], settings: Mapping, model_type: str | None):
    model, is_whole = _read(folder / "config.json", MODEL_FIELDS), "tokenizer.json" in names
    class_name = class_of(settings, model, is_whole=is_whole)
    by_default = class_of(settings, {"model_type": model_type}, is_whole=is_whole)
    if class_name is None and not is_whole:
        _check_told(folder, names, model.get("model_type"), model_type)
    if class_name == by_default or (class_name and _is_from_here(folder, settings)):
        return settings
    if class_name:
        return {**settings, "tokenizer_class": class_name}
    if is_whole:
        # A tokenizer.json of no class must not get that of the other folder's model. The second
        # entry concerns decoding alone; without it the file might look like one written here.
        return {"clean_up_tokenization_spaces": False} | settings | {"tokenizer_class": _GENERIC}
    return settings


def _check_told(folder, names: Collection[str], source_type: str | None, model_type: str | None):
    """Raises ValueError where a vocabulary of no known class would be read as one."""
    told = "vocab.txt" in names or source_type in (None, "mpojax", model_type)
    if not told and not {"vocab.json", "encoder.json"}.isdisjoint(names):
        raise ValueError(
            f"{folder} names no class of its tokenizer, and that of model_type {source_type!r} is "
            f"not known here: a copy of its vocabulary would be read as another one. Add "
            f"tokenizer_class to {folder / SETTINGS}."
        )


def _is_from_here(folder: pathlib.Path, settings: Mapping) -> bool:
    names = {*settings, *_read(folder / "special_tokens_map.json", {})}
    added = _read(folder / "added_tokens.json", {})
    return not added and is_written_here(names, settings.get("tokenizer_class"))


def _read(path: pathlib.Path, fields: Mapping[str, checks.Allowed]) -> dict:
    return checks.read_json(path, fields) if path.is_file() else {}
