"""Compressed models as folders of transformers: factors, and a modeling file that multiplies them.

The folder is one of a dense model (`checkpoints`), but for the layers that hold a matrix in MPO
form. `templates/modeling_mpo.py` is copied next to the weights, with the classes of the family at
its end; it says how a layer's tensors are named.
"""

import pathlib
from collections.abc import Mapping

import numpy as np

from mpojax import models, mpo
from mpojax.io import quantization
from mpojax.io.hf import checkpoints
from mpojax.io.hf.family import Family
from mpojax.io.hf.names import Tensor

FILE = "modeling_mpo.py"
ENTRY = "mpo"  # of config.json
# Of the model type, which transformers then does not know: it never loads the folder without FILE.
PREFIX = "mpo_"
_TEMPLATE = pathlib.Path(__file__).parent / "templates" / FILE
# End of a class name in transformers -> its Auto class; the first that fits.
_AUTO = {
    "ForCausalLM": "AutoModelForCausalLM",
    "LMHeadModel": "AutoModelForCausalLM",
    "ForConditionalGeneration": "AutoModelForSeq2SeqLM",
    "ForSequenceClassification": "AutoModelForSequenceClassification",
    "ForTokenClassification": "AutoModelForTokenClassification",
    "ForQuestionAnswering": "AutoModelForQuestionAnswering",
    "ForMaskedLM": "AutoModelForMaskedLM",
    "ForPreTraining": "AutoModelForPreTraining",
    "Model": "AutoModel",
}
_CONFIG = """

class MPOConfig(transformers.{0}.config_class):
    model_type = "{1}"
"""
_CLASS = """

class MPO{0}(Factored, transformers.{0}):
    config_class = MPOConfig
"""
# Some heads of transformers ask the Auto class for the model below them.
_REGISTERED = """

transformers.AutoModel.register(MPOConfig, MPO{0}, exist_ok=True)
"""


def export_model(
    config: models.Config,
    shapes: Mapping[str, mpo.MPOShape],
    arrays: Mapping[str, np.ndarray],
    dtype: str = "float32",
) -> tuple[dict, dict[str, np.ndarray], str]:
    """Content of config.json, tensors by name, and the text of modeling_mpo.py.

    Args:
      config, shapes: of the model.
      arrays: by logical path.
      dtype: of the factors, "float32" or "int8" (`quantization`); all else is float32.

    Raises:
      ValueError: the model has no counterpart in transformers.
    """
    chains = {models.dense_name(p): s for p, s in shapes.items() if f"{p}/cores/0" in arrays}
    is_core = tuple(f"{path.rpartition('/')[0]}/cores/" for path in chains)
    dense = [path for path in arrays if not path.startswith(is_core)]
    family, config, content, wanted = checkpoints.layout(config, [*dense, *chains])
    tensors, layers = {}, {}
    for name, tensor in wanted.items():
        if chains.keys().isdisjoint(tensor.paths):
            tensors[name] = tensor.join(arrays, config)
            continue
        if tensor.index is not None:
            raise ValueError(f"{name} of transformers is one expert's: it cannot be a chain there.")
        layer = name.removesuffix(".weight")
        parts = [_matrix(path, chains.get(path), arrays, dtype) for path in tensor.paths]
        layers[layer], held = _layer(parts, tensor, config)
        tensors |= {f"{layer}.{leaf}": array for leaf, array in held.items()}
    if models.dense_name("embeddings/word") not in chains:
        tensors |= family.copies_of(config, content, tensors)
    elif getattr(config, "tied", False) and not content["tie_word_embeddings"]:
        raise ValueError(
            f"{content['architectures'][0]} of transformers holds a tied embedding twice where "
            "logits are not scaled, so that it cannot be a chain there: leave "
            "embeddings/word dense."
        )
    content, text = _with_classes(family, content)
    return {**content, ENTRY: {"layers": layers, "int8": dtype == "int8"}}, tensors, text


def _matrix(
    path: str, shape: mpo.MPOShape | None, arrays: Mapping[str, np.ndarray], dtype: str
) -> tuple[dict, dict[str, np.ndarray]]:
    """(form for config.json, tensors by the last part of their names); no shape: dense."""
    start = f"{path.rpartition('/')[0]}/cores"
    if shape is None:
        # A dense kernel as a chain of one core, (1, in, out, 1).
        form, cores = {}, [arrays[path][None, :, :, None]]
        shape = mpo.MPOShape((arrays[path].shape[0],), (arrays[path].shape[1],))
    else:
        form, cores = _form(shape), [arrays[f"{start}/{k}"] for k in range(shape.num_cores)]
    held = {}
    for k, core in enumerate(cores):
        if dtype == "int8":
            held[f"factors.{k}"], held[f"scales.{k}"] = quantization.quantize(core)
        else:
            held[f"factors.{k}"] = np.asarray(core, np.float32)
    if "bonds" not in form:  # (1, in, 1, r) and (r, 1, out, 1) as matrices
        held = {name: a.reshape(a.shape[0] * a.shape[1], -1) for name, a in held.items()}
    if shape.pivoted:
        held["order"] = np.asarray(arrays[f"{start}/{shape.num_cores}"], np.int32)
    return {"in_features": shape.in_features, "out_features": shape.out_features, **form}, held


def _form(shape: mpo.MPOShape) -> dict:
    if shape.is_low_rank and not shape.is_padded:
        return {"rank": shape.bonds[0], "pivoted": shape.pivoted}
    lists = {"in_factors": shape.in_factors, "out_factors": shape.out_factors, "bonds": shape.bonds}
    return {name: list(entries) for name, entries in lists.items()}


def _layer(
    matrices: list[tuple[dict, dict]], tensor: Tensor, config: models.Config
) -> tuple[dict, dict[str, np.ndarray]]:
    """(form, tensors) of a layer of one matrix, or of several side by side."""
    if len(matrices) == 1 and tensor.convert is None:
        return matrices[0]
    held = {
        f"parts.{k}.{name}": array
        for k, (_, part) in enumerate(matrices)
        for name, array in part.items()
    }
    if tensor.convert is not None:  # a permutation of the columns
        # Converting the numbers of the columns gives the order in which transformers wants them.
        columns = np.arange(sum(form["out_features"] for form, _ in matrices), dtype=np.int32)
        held["order"] = tensor.convert.write(columns[None], config)[0]
    parts = [form for form, _ in matrices]
    return {"parts": parts, "reordered": tensor.convert is not None}, held


def _with_classes(family: Family, content: dict) -> tuple[dict, str]:
    """(content of config.json for the classes of modeling_mpo.py, the text of that)."""
    (own,) = content["architectures"]
    bare = family.classes.get("none", own)
    model_type = PREFIX + content["model_type"]
    names = list(dict.fromkeys((own, bare)))
    auto = {"AutoConfig": "MPOConfig"}
    for name in names:  # AutoModel of a T5EncoderModel is not its bare T5Model
        auto.setdefault(next(a for end, a in _AUTO.items() if name.endswith(end)), f"MPO{name}")
    text = _TEMPLATE.read_text(encoding="utf-8") + _CONFIG.format(own, model_type)
    more = {
        "model_type": model_type,
        "architectures": [f"MPO{own}"],
        "auto_map": {name: f"{FILE.removesuffix('.py')}.{target}" for name, target in auto.items()},
    }
    below = auto.get("AutoModel", f"MPO{own}").removeprefix("MPO")
    text += "".join(map(_CLASS.format, names)) + _REGISTERED.format(below)
    return content | more, text
