"""Folders that hold no model as it is read here, and commands that make one of them.

The commands work as they are printed; what they contain of a folder is quoted or checked.
"""

import json
import os
import pathlib
import re
import shlex
from collections.abc import Iterable, Mapping

from mpojax import checks, tokenizer_folders

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_NO_PICKLE = "This library never unpickles, because a pickle file can run any program."
_FLAX, _TENSORFLOW = "flax_model.msgpack", "tf_model.h5"


def without_config(folder: pathlib.Path) -> FileNotFoundError:
    """The error for a folder without config.json: an adapter, or the folder above a model."""
    says = f"{folder} holds no {CONFIG_NAME}"
    if hint := _adapter(folder):
        return FileNotFoundError(f"{says}: {hint}")
    if inside := _models_inside(folder):
        names = [str(path.relative_to(folder)) for path in inside]
        return FileNotFoundError(
            f"{says}, but there are models inside of it ({checks.listed(names)}): give one of "
            f"them, such as {inside[0]}, the newest."
        )
    return FileNotFoundError(f"{says}; a model folder has {CONFIG_NAME} and {WEIGHTS_NAME}.")


def without_weights(folder: pathlib.Path) -> ValueError | FileNotFoundError:
    """The error for a folder without safetensors weights: what it has, and how to convert that."""
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    if hint := _adapter(folder):
        return FileNotFoundError(f"{folder} holds no weights of a model: {hint}")
    only = f"{folder} holds its weights only as"
    if found := [n for n in names if pathlib.PurePath(n).suffix in PICKLE_SUFFIXES]:
        weights = [n for n in found if n.startswith("pytorch_model")] or found
        if (folder / CONFIG_NAME).is_file():
            how = _with_transformers(folder)
        else:
            how = _with_torch(folder / weights[0], folder / WEIGHTS_NAME)
        return ValueError(
            f"{only} {checks.listed(weights)}, not as {WEIGHTS_NAME}. {_NO_PICKLE} Convert it "
            f"once, where you trust it: {how}"
        )
    if _FLAX in names:
        return ValueError(f"{only} {_FLAX}, not as {WEIGHTS_NAME}. Convert it: {_flax(folder)}")
    if _TENSORFLOW in names:
        how = _with_transformers(folder, "from_tf=True")
        return ValueError(
            f"{only} {_TENSORFLOW}, not as {WEIGHTS_NAME}. transformers 4 converts it (5 does not "
            "know TensorFlow any more), in an environment of its own: pip install "
            f"'transformers<5' torch tensorflow tf-keras; {how}"
        )
    says = f"{folder} holds no weights: expected {WEIGHTS_NAME} or {INDEX_NAME}."
    if found := [n for n in names if n.endswith(".gguf")]:
        return FileNotFoundError(f"{says} Give the path of {found[0]} in it to load that.")
    if found := [n for n in names if n.endswith(".safetensors")]:
        return FileNotFoundError(f"{says} It has {checks.listed(found)}, of which none is that.")
    if inside := _models_inside(folder):
        return FileNotFoundError(f"{says} Its folder {inside[0]} does; give that.")
    return FileNotFoundError(says)


# {quant_method in config.json: its name}; bitsandbytes' can be undone by transformers.
_QUANTISED = {
    "gptq": "GPTQ",
    "awq": "AWQ",
    "bitsandbytes": "bitsandbytes",
    "compressed-tensors": "compressed-tensors",
    "fp8": "FP8",
    "mxfp4": "MXFP4",
    "hqq": "HQQ",
    "quanto": "Quanto",
    "torchao": "torchao",
}


def check_not_quantised(content: Mapping, source: str):
    """Refuses weights that another library has quantised.

    Raises:
      ValueError: names the method, and what to load instead.
    """
    settings = content.get("quantization_config")
    if settings is None:
        return
    settings = settings if isinstance(settings, Mapping) else {}
    method = settings.get("quant_method", "bitsandbytes" if _is_bitsandbytes(settings) else None)
    name = _QUANTISED.get(method, checks.shortened(method)) if isinstance(method, str) else "?"
    base = content.get("_name_or_path")
    base = f" ({checks.shortened(base)})" if isinstance(base, str) and base else ""
    advice = f"Give the model in 16 or 32 bits that it was made of{base}, or a GGUF file of it"
    if name == "bitsandbytes":
        folder, target = _new_folder(pathlib.Path(source))
        code = (
            f"import transformers; transformers.AutoModelForCausalLM.from_pretrained("
            f"{_text(folder)}).dequantize().save_pretrained({_text(target)})"
        )
        advice += f"; or undo it, where bitsandbytes is installed: {_python(code)} writes {target}"
    raise ValueError(
        f"{source} holds weights quantised by {name} (quantization_config in {CONFIG_NAME}), which "
        f"are not read. {advice}."
    )


def _is_bitsandbytes(settings: Mapping) -> bool:
    return any(name in settings for name in ("load_in_4bit", "load_in_8bit"))


def how_to_convert(path: pathlib.Path) -> str:
    """Advice on converting a single pickle file."""
    command = _with_torch(path, path.with_suffix(".safetensors"))
    return f"{_NO_PICKLE} Convert it once, where you trust it: {command}"


def _with_transformers(folder: pathlib.Path, more: str = "") -> str:
    """A command for the class in config.json; the tokenizer's files are copied as they are."""
    source, target = _new_folder(folder)
    arguments = ", ".join([_text(source), *([more] if more else [])])
    code = (
        f"import shutil, transformers; transformers.{_class(folder)}.from_pretrained({arguments})"
        f".save_pretrained({_text(target)})"
    )
    if names := [name for name in tokenizer_folders.FILES if (folder / name).is_file()]:
        paths = ", ".join(_text(f"{source}/{name}") for name in names)
        code += f"; [shutil.copy(path, {_text(target)}) for path in ({paths},)]"
    return f"{_python(code)} writes {target}; give that."


def _with_torch(source: pathlib.Path, target: pathlib.Path) -> str:
    code = (
        "import torch, safetensors.torch as s; s.save_file({n: t.contiguous().clone() for n, t "
        f'in torch.load({_text(source)}, "cpu", weights_only=True).items()}}, {_text(target)})'
    )
    return f"{_python(code)} writes {target}."


def _flax(folder: pathlib.Path) -> str:
    """A command that needs nothing beyond this library; the names and axes are torch's."""
    code = (
        "from flax import serialization, traverse_util; import numpy, safetensors.numpy; "
        f"file = open({_text(folder / _FLAX)}, {_text('rb')}); "
        "flat = traverse_util.flatten_dict(serialization.msgpack_restore(file.read())); "
        'leaf = {"kernel": "weight", "embedding": "weight", "scale": "weight"}; '
        'made = {".".join([*k[:-1], leaf.get(k[-1], k[-1])]): '
        'numpy.ascontiguousarray(v.T if k[-1] == "kernel" else v) for k, v in flat.items()}; '
        f"safetensors.numpy.save_file(made, {_text(folder / WEIGHTS_NAME)})"
    )
    return f"{_python(code)} writes {folder / WEIGHTS_NAME}."


def _python(code: str) -> str:
    return f"python -c {shlex.quote(code)}"


def _text(value: object) -> str:
    """A string for a Python program, in double quotes, which need none within a shell's single."""
    # JSON escapes an emoji as two halves, which Python does not join. Bytes of a path that are no
    # text, lone surrogates, cannot be printed without an escape.
    text = json.dumps(str(value), ensure_ascii=False)
    return re.sub("[\ud800-\udfff]", lambda match: f"\\u{ord(match[0]):04x}", text)


def _new_folder(folder: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    whole = folder.absolute()
    return whole, whole.with_name(f"{whole.name}-safetensors")


def _class(folder: pathlib.Path) -> str:
    """The class in config.json; without one, a class that keeps what pre-training left."""
    try:
        names = checks.read_json(folder / CONFIG_NAME).get("architectures")
    except (OSError, ValueError):
        names = None
    is_named = isinstance(names, list) and names and isinstance(names[0], str)
    # What a file says goes into a command: only if it is a name.
    return names[0] if is_named and names[0].isidentifier() else "AutoModelForPreTraining"


def _adapter(folder: pathlib.Path) -> str:
    """What to do about an adapter's folder; nothing for others."""
    if (folder / "adapter_config.json").is_file():
        load, kind = "load_peft", "an adapter of peft"
        base = _base_of(folder) or "BASE"
    elif (folder / "adapter.json").is_file():
        load, kind, base = "load_adapter", "an adapter of this library", "BASE"
    else:
        return ""
    target = folder.absolute().with_name(f"{folder.absolute().name}-merged")
    code = (
        "import mpojax as mj; "
        f"model = mj.io.{load}(mj.load({_text(base)}), "
        f"{_text(folder.absolute())}); "
        f"mj.save(mj.merge(model), {_text(target)}, "
        f"tokenizer_from={_text(base)})"
    )
    whose = "" if base != "BASE" else ", with the folder of its base model for BASE"
    return f"it holds {kind}, not a model. Merge it{whose}: {_python(code)} writes {target}."


def _base_of(folder: pathlib.Path) -> str | None:
    try:
        base = checks.read_json(folder / "adapter_config.json").get("base_model_name_or_path")
    except (OSError, ValueError):
        return None
    return base if isinstance(base, str) else None


def _models_inside(folder: pathlib.Path) -> list[pathlib.Path]:
    """Folders of models in a folder, the newest first: checkpoints of a run, revisions of a hub."""
    found: Iterable[pathlib.Path] = [*folder.glob("*"), *folder.glob("snapshots/*")]
    found = [path for path in found if _is_model(path)]

    def age(path: pathlib.Path) -> tuple[int, float]:
        number = re.search(r"(\d+)$", path.name) if path.name.startswith("checkpoint") else None
        return -int(number[1]) if number else 0, -os.stat(path).st_mtime

    return sorted(found, key=age)


def _is_model(folder: pathlib.Path) -> bool:
    if not (folder / CONFIG_NAME).is_file():
        return (folder / WEIGHTS_NAME).is_file()
    suffixes = (".safetensors", *PICKLE_SUFFIXES)
    return any(path.suffix in suffixes for path in folder.iterdir())
