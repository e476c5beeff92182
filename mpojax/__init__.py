"""mpojax: transformers in matrix product operator (MPO, tensor-train matrix) form.

A weight matrix becomes a chain of small tensors: a large central core and small auxiliary cores
around it.

    import mpojax as mj

    model = mj.load("folder, hub id, package:NAME/PATH or GGUF file")
    calibration = mj.calibrate(model, batches)
    small, report = mj.compress(model, budget=0.6, calibration=calibration)
    mj.save(small, "small")
    mj.save(mj.merge(small), "dense", format="huggingface")

`compress`, `merge`, `calibrate`, `add_adapters` and `save` also take any other Flax NNX module.

Parts of the library, each importing only from those above it:

    mpojax.mpo          pure functions on cores
    mpojax.nn           Flax NNX layers
    mpojax.models       transformers built from the layers
    mpojax.compression  rules, calibration, compress and merge, adapters, experts
    mpojax.io           Hugging Face folders, GGUF, own folders, adapter files
    mpojax.data         texts, tokenizers, batches
    mpojax.training     one training loop
    mpojax.methods      the papers, as compositions of the above

`import mpojax` loads only the kernels; all else is imported where it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from mpojax import mpo

__version__ = "0.1.0"

if TYPE_CHECKING:
    from mpojax import compression, data, io, methods, models, nn, training
    from mpojax.compression import Rule, add_adapters, add_experts, calibrate, compress, merge
    from mpojax.io import load_pretrained as load
    from mpojax.io import save_pretrained as save
    from mpojax.methods.moefication import moefy
    from mpojax.methods.smile import combine
    from mpojax.models import generate

__all__ = [
    "Rule",
    "__version__",
    "add_adapters",
    "add_experts",
    "calibrate",
    "combine",
    "compress",
    "compression",
    "data",
    "generate",
    "io",
    "load",
    "merge",
    "methods",
    "models",
    "moefy",
    "mpo",
    "nn",
    "save",
    "training",
]

# Name here: (part that has it, its name there).
_VERBS = {
    "Rule": ("compression", "Rule"),
    "add_adapters": ("compression", "add_adapters"),
    "add_experts": ("compression", "add_experts"),
    "calibrate": ("compression", "calibrate"),
    "combine": ("methods.smile", "combine"),
    "compress": ("compression", "compress"),
    "generate": ("models", "generate"),
    "load": ("io", "load_pretrained"),
    "merge": ("compression", "merge"),
    "moefy": ("methods.moefication", "moefy"),
    "save": ("io", "save_pretrained"),
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        # Python prints the nearest name of `dir(mpojax)` after it.
        raise AttributeError(f"module 'mpojax' has no attribute {name!r}")
    if name not in _VERBS:
        return importlib.import_module(f"mpojax.{name}")
    part, attribute = _VERBS[name]
    value = globals()[name] = getattr(importlib.import_module(f"mpojax.{part}"), attribute)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
