"""Shell commands of the documentation: modules, configs, fields and flags are there."""

import re
import shlex
import subprocess
import sys

import ml_collections
import pytest

from experiments import command_line
from tests.docs import pages

_DEFINED = re.compile(r"(?:DEFINE_\w+|add_argument)\(\s*\"(?:--)?(\w+)\"")
_SHARED = ("launch.py", "processes.py", "command_line.py")


def commands(text: str) -> list[list[str]]:
    """Words of each line of a shell block; lines that end with a backslash are joined."""
    lines = text.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def _found() -> dict[str, list[str]]:
    """Commands of all pages, and those that they run on other machines."""
    found = [
        words
        for page in pages.PAGES
        for block in pages.blocks(page, "bash")
        for words in commands(block)
    ]
    remote = [
        words
        for outer in found
        for word in outer
        if word.startswith("--command=")
        for part in word.removeprefix("--command=").split("&&")
        for words in commands(part)
    ]
    return {" ".join(words): words for words in [*found, *remote]}


# What `gcloud help` lists, of the commands that the documentation names.
_GCLOUD = {
    "storage buckets create": {"project", "location"},
    "storage cp": {"recursive"},
    "compute tpus tpu-vm create": {"project", "zone", "accelerator-type", "version", "spot"},
    "compute tpus tpu-vm ssh": {"zone", "worker", "command"},
    "compute tpus tpu-vm delete": {"zone"},
}


COMMANDS = _found()
OF_PYTHON = [words[words.index("-m") + 1 :] for words in COMMANDS.values() if "-m" in words]
OF_PYTHON = [words for words in OF_PYTHON if words[0].startswith(("experiments", "tools"))]
OF_PYTHON = list({" ".join(words): words for words in OF_PYTHON}.values())


def flags_of(module: str) -> set[str]:
    """Names of flags that the source of a module, or what all commands share, defines."""
    folder = pages.ROOT / module.replace(".", "/")
    path = folder / "__main__.py" if folder.is_dir() else folder.with_suffix(".py")
    assert path.is_file(), f"there is no module {module}"
    paths = [path]
    if module.startswith("experiments"):
        paths += [pages.ROOT / "experiments" / name for name in _SHARED]
    texts = [p.read_text(encoding="utf-8") for p in paths if p.is_file()]
    return {"help", "config", *_DEFINED.findall("".join(texts))}


@pytest.mark.parametrize("words", OF_PYTHON, ids=lambda words: words[0])
def test_commands_parse(words, monkeypatch):
    monkeypatch.chdir(pages.ROOT)
    known = flags_of(words[0])
    options = dict(word.lstrip("-").partition("=")[::2] for word in words if word[:1] == "-")
    assert {name.removeprefix("no") for name in options if "." not in name} <= known
    if source := options.get("config"):
        config = command_line.load_config(source)
        for name in options:
            if name.startswith("config."):
                assert has_field(config, name.removeprefix("config.")), name


def has_field(config: ml_collections.ConfigDict, name: str) -> bool:
    """True if a dotted name is a field that a command line may set."""
    for part in name.split("."):
        if not isinstance(config, ml_collections.ConfigDict) or part not in config:
            return False
        config = config[part]
    return True


def test_every_command_is_known():
    others = [words for words in COMMANDS.values() if "-m" not in words]
    for words in others:
        words = [word for word in words if "=" not in word or word[:1] == "-"]
        assert words[0] in ("bash", "pip", "gcloud", "git", "cd"), words
        if words[0] == "gcloud":
            known = [name for name in _GCLOUD if " ".join(words[1:]).startswith(name)]
            assert len(known) == 1, words
            options = {word[2:].partition("=")[0] for word in words if word.startswith("--")}
            assert options <= _GCLOUD[known[0]], words
        if words[0] == "bash":
            path = pages.ROOT / words[1]
            assert subprocess.run(["bash", "-n", str(path)], check=False).returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["quickstart", "quickstart_encoder"])
def test_the_demo(minilm_dir, tmp_path, name):
    """What tools/quickstart.sh [encoder] smoke runs once the environment is made."""
    script = (pages.ROOT / "tools/quickstart.sh").read_text(encoding="utf-8")
    assert '-m experiments.compress --config="configs/$name.py:$size"' in script
    options = [f"--config=configs/{name}.py:smoke", f"--workdir={tmp_path / 'demo'}"]
    run = subprocess.run(
        [sys.executable, "-m", "experiments.compress", *options],
        cwd=pages.ROOT,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    if run.returncode and "could not" in run.stderr:
        pytest.skip(f"the demo's texts are not at hand: {run.stderr[-200:]}")
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "demo/result.json").is_file()
