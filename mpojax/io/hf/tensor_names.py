"""Names of tensors in weight files, without what wrappers, task models and older versions add."""

import re
from collections.abc import Callable, Collection, Mapping

import numpy as np
from absl import logging

from mpojax.io.hf.name_maps import RENAMED_SUFFIXES

# Put into names by torch.compile, FSDP and activation checkpointing, wherever a module is wrapped.
_WRAPPERS = re.compile(r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")


def bare(
    tensors: Mapping[str, np.ndarray],
    tables: Collection[str],
    prefix: str,
    is_buffer: Callable[[str], bool],
    where: str,
) -> dict[str, np.ndarray]:
    """Tensors by the names that the bare model of transformers gives them.

    Args:
      tensors: by the names in the file.
      tables: names of the token embedding in the bare model, by which a prefix is known that
        DataParallel (`module.`), Lightning (`model.`), sentence-transformers (`0.auto_model.`) or a
        user's own class has put before all names.
      prefix: what task models of transformers put before the names of the bare model.
      is_buffer: whether a tensor of that name is a constant buffer, which is left out.
      where: named in errors and logs.

    Raises:
      ValueError: two tensors of one name.
    """
    names = {name: _WRAPPERS.sub("", name) for name in tensors}
    outer = _outer(names.values(), tables, prefix)
    names = {name: inner.removeprefix(outer) for name, inner in names.items()}
    if changed := [name for name, inner in names.items() if name != inner]:
        logging.info("%s: tensors such as %s are read as %s", where, changed[0], names[changed[0]])
    plain: dict[str, np.ndarray] = {}
    for name, tensor in tensors.items():
        short = _renamed(names[name].removeprefix(prefix))
        if is_buffer(short):
            continue
        if short in plain:
            raise ValueError(f"{where} holds {short} twice, with and without prefix or old suffix.")
        plain[short] = tensor
    return plain


def _outer(names: Collection[str], tables: Collection[str], prefix: str) -> str:
    """What stands before the token embedding's name and the prefix of transformers."""
    found = {
        name.removesuffix(table).removesuffix(prefix)
        for name in names
        for table in tables
        if name == table or name.endswith(f".{table}")
    }
    return found.pop() if len(found) == 1 else ""


def _renamed(name: str) -> str:
    for old, new in RENAMED_SUFFIXES:
        if name.endswith(old):
            return name.removesuffix(old) + new
    return name
