"""Sources of models: a folder, a GGUF file, a hub id, or the files of an installed package."""

import importlib.machinery
import os
import pathlib
import re

from mpojax import files, tokenizer_folders
from mpojax.io import generation_config
from mpojax.io.gguf import reader
from mpojax.io.other_folders import CONFIG_NAME

_PACKAGE = "package:"
# Names from before owners were part of them have none: "bert-base-uncased".
_HUB_ID = re.compile(r"([A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*")
_UNREACHED = "the hub could not be reached (no network?), and the local cache lacks the model"
# What an error of huggingface_hub or below means: (kind to raise, text), by the name of its class
# or of one of its bases, which stays when modules and HTTP libraries change. The first one counts.
_HUB_ERRORS: dict[str, tuple[type[OSError], str]] = {
    "GatedRepoError": (
        PermissionError,
        "the hub has it only for those who accept its conditions (a gated model): accept them at "
        "https://huggingface.co/{name} and log in with hf auth login",
    ),
    "RepositoryNotFoundError": (
        FileNotFoundError,
        "the hub has no model of that name, or it is private (then log in with hf auth login)",
    ),
    "HFValidationError": (FileNotFoundError, "it is no valid name of a hub model either"),
    "OfflineModeIsEnabled": (
        ConnectionError,
        "the hub was not asked, because HF_HUB_OFFLINE is set; the local cache lacks the model",
    ),
    "HfHubHTTPError": (ConnectionError, "the hub answered with an error ({error})"),
    "ProxyError": (ConnectionError, "the hub could not be reached through the proxy ({error})"),
    "ConnectError": (ConnectionError, _UNREACHED),
    "ConnectionError": (ConnectionError, _UNREACHED),
    "TimeoutException": (ConnectionError, _UNREACHED),
    "Timeout": (ConnectionError, _UNREACHED),
    "LocalEntryNotFoundError": (ConnectionError, _UNREACHED),
}


def locate(source: str | os.PathLike, option: str = "source") -> pathlib.Path:
    """The folder or GGUF file that a name stands for; one meaning wherever a model is named.

    Args:
      source: a folder or a GGUF file (`~` is the home folder), also gs://... and s3://..., of which
        a copy is fetched; `package:NAME/PATH`, a folder or GGUF file that an installed package
        carries; or, where there is no such path, a hub id
        `owner/name` (older ones are a `name` alone), which needs the optional package
        huggingface_hub and a network, or the model in its cache.
      option: what the caller lets a user set, for errors.

    Returns:
      A GGUF file also for a folder that holds one and no config.json.

    Raises:
      FileNotFoundError: nothing there, or no such model on the hub.
      ConnectionError: the hub cannot be reached.
      PermissionError: a gated model.
      NotADirectoryError: another file.
      ImportError: the package is not installed; a hub id without huggingface_hub.
      ValueError: a path that leaves its package; several GGUF files in one folder.
    """
    name = os.path.expanduser(source)
    if name.startswith(_PACKAGE):
        return _model_at(package_path(name[len(_PACKAGE) :]))
    path = files.local(name)
    if path.exists() or path.suffix == reader.SUFFIX:
        return _model_at(path)
    if not _HUB_ID.fullmatch(name):
        raise FileNotFoundError(
            f"there is no folder {path}, and it does not look like a hub id (owner/name) either; "
            f"pass {option}=FOLDER, the folder of a checkpoint (a run that has ended leaves one in "
            "WORKDIR/model)."
        )
    return _model_at(_fetched(name, option))


def local_folder(source: str | os.PathLike) -> pathlib.Path:
    """The folder of a checkpoint; a hub id is downloaded, weights, configuration and tokenizer.

    For what needs the folder besides the model: the tokenizer, or `tokenizer_from` of an export. Of
    a GGUF file it is the folder that holds it.

    Raises:
      FileNotFoundError, ConnectionError, PermissionError, NotADirectoryError, ImportError,
      ValueError: as `locate` does.
    """
    found = locate(source)
    return found if found.is_dir() else found.parent


def package_path(name: str) -> pathlib.Path:
    """The file or folder `NAME/PATH` of an installed package, whose code is never run.

    `importlib.util.find_spec` would import the parents of a dotted name, and finders that other
    packages have installed may import more; the path finder alone looks at folders.

    Raises:
      ImportError: the package is not installed.
      FileNotFoundError: it has no such file or folder.
      ValueError: a name that is none, or a path that leaves the package.
    """
    package, _, inside = name.partition("/")
    top, *below = package.split(".")
    if not all(part.isidentifier() for part in (top, *below)):
        raise ValueError(f"package:{name} does not name a package; write package:NAME/FOLDER.")
    parts = pathlib.PurePosixPath(inside).parts
    if ".." in parts or inside.startswith("/"):
        raise ValueError(f"package:{name} leaves the package; give a path inside of it.")
    spec = importlib.machinery.PathFinder.find_spec(top)
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(
            f"package:{name}: the package is not installed; run pip install --no-deps "
            f"{top.replace('_', '-')}"
        )
    for location in spec.submodule_search_locations:  # several of a namespace package
        if (path := pathlib.Path(location, *below, *parts)).exists():
            return path
    raise FileNotFoundError(f"package:{name}: the installed package has no folder {inside!r}.")


def _model_at(path: pathlib.Path) -> pathlib.Path:
    """The GGUF file that a path is or holds, else the folder that it is."""
    if (file := reader.find(path)) is not None:
        return file
    if path.is_dir():
        return path
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}.")
    raise NotADirectoryError(f"{path} is a file; give the folder that holds {CONFIG_NAME}.")


def _fetched(name: str, option: str) -> pathlib.Path:
    """The folder of a hub model in the local cache, fetched where it is not there yet."""
    way_out = f"Pass {option}=FOLDER, a folder on this machine with the model."
    try:
        import huggingface_hub
    except ImportError as error:
        raise ImportError(
            f"there is no folder {name}. To fetch the hub model of that name: pip install "
            f"huggingface_hub. {way_out}"
        ) from error
    patterns = ["*.safetensors", "*.safetensors.index.json", *tokenizer_folders.FILES]
    patterns += [CONFIG_NAME, generation_config.NAME]
    try:
        offline = {} if files.may_fetch() else {"local_files_only": True}
        folder = huggingface_hub.snapshot_download(name, allow_patterns=patterns, **offline)
        return pathlib.Path(folder)
    except Exception as error:
        kind, meaning = _explained(error, name)
        raise kind(f"there is no folder {name}, and {meaning}. {way_out}") from error


def _explained(error: Exception, name: str) -> tuple[type[OSError], str]:
    """The kind of error to raise, and what happened in one line."""
    names = {base.__name__ for each in _chain(error) for base in type(each).__mro__}
    text = str(error).strip().partition("\n")[0][:200]
    for known, (kind, meaning) in _HUB_ERRORS.items():
        if known in names:
            return kind, meaning.format(name=name, error=text)
    if isinstance(error, OSError) and error.errno is not None:  # such as a full disk
        return OSError, f"fetching it from the hub failed: {text}"
    return FileNotFoundError, f"the hub gave no model of that name: {text}"


def _chain(error: BaseException | None):
    """An error and those that it was raised from."""
    while error is not None:
        yield error
        error = error.__cause__
