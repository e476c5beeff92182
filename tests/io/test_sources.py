"""Names of models: folders, GGUF files, packages whose code never runs, hub ids."""

import importlib
import os
import pathlib
import subprocess
import sys
import textwrap

import pytest

from mpojax import io
from tests.io import helpers

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def evil(tmp_path, monkeypatch):
    """A package that leaves a mark wherever its code runs, with a model in it and one below."""
    site = tmp_path / "site"
    mark = f"import pathlib; pathlib.Path({str(tmp_path / 'mark')!r}).write_text('ran')\n"
    for folder in ("evil", "evil/sub"):
        (site / folder / "model").mkdir(parents=True)
        (site / folder / "model" / "small.gguf").touch()
        (site / folder / "__init__.py").write_text(mark, encoding="utf-8")
    (site / "evil" / "plain").mkdir()
    (site / "evil_module.py").write_text(mark, encoding="utf-8")
    (site / "spread" / "model").mkdir(parents=True)  # a namespace package, in two places
    (tmp_path / "more" / "spread" / "other").mkdir(parents=True)
    (site / "secret").mkdir()
    monkeypatch.syspath_prepend(tmp_path / "more")
    monkeypatch.syspath_prepend(site)
    yield site
    assert not (tmp_path / "mark").exists()
    assert not {"evil", "evil.sub", "evil_module", "spread"} & set(sys.modules)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("evil/plain", "evil/plain"),
        ("evil/model/small.gguf", "evil/model/small.gguf"),
        ("evil/model", "evil/model/small.gguf"),
        ("evil.sub/model", "evil/sub/model/small.gguf"),
        ("evil/sub/model/small.gguf", "evil/sub/model/small.gguf"),
        ("spread/model", "spread/model"),
        ("spread/other", "../more/spread/other"),
    ],
)
def test_files_of_packages_are_found_and_nothing_is_imported(evil, name, found):
    assert io.locate(f"package:{name}") == pathlib.Path(os.path.normpath(evil / found))


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("evil.none/model", FileNotFoundError, "has no folder 'model'"),
        ("evil.sub.deeper/model", FileNotFoundError, "has no folder 'model'"),
        ("evil/model/other.gguf", FileNotFoundError, "has no folder 'model/other.gguf'"),
        ("evil/__init__.py", NotADirectoryError, "is a file; give the folder"),
        ("evil_module/model", ImportError, "is not installed"),
        ("evil_module.sub/model", ImportError, "is not installed"),
        ("no_such.sub/model", ImportError, "pip install --no-deps no-such"),
        ("evil/../secret", ValueError, "leaves the package"),
        ("evil/model/../../secret", ValueError, "leaves the package"),
        ("evil//etc", ValueError, "leaves the package"),
        ("evil..sub/model", ValueError, "does not name a package"),
        ("../site/evil/model", ValueError, "does not name a package"),
        (".evil/model", ValueError, "does not name a package"),
        ("", ValueError, "does not name a package"),
        ("__main__/model", ImportError, "is not installed"),
    ],
)
def test_names_that_are_none(evil, name, error, message):
    with pytest.raises(error, match=message) as raised:
        io.locate(f"package:{name}")
    assert "\n" not in str(raised.value)


def test_finders_of_other_packages_are_not_asked(evil, monkeypatch):
    """Such as that of setuptools, which imports for names of its own."""

    class Finder:
        @staticmethod
        def find_spec(name, path=None, target=None):
            raise AssertionError(name)

    monkeypatch.setattr(sys, "meta_path", [Finder, *sys.meta_path])
    assert io.locate("package:evil/plain") == evil / "evil" / "plain"


def test_a_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    helpers.write(tmp_path / "models" / "small")
    (tmp_path / "models" / "small.gguf").touch()
    assert io.locate("~/models/small") == tmp_path / "models" / "small"
    assert io.locate(pathlib.Path("~/models/small.gguf")).parent == tmp_path / "models"
    model = io.load_pretrained("~/models/small")
    io.save_pretrained(model, "~/saved", tokenizer_from=None)
    io.export_huggingface(model, "~/exported")
    assert (tmp_path / "saved" / "config.json").is_file()
    assert (tmp_path / "exported" / "config.json").is_file()


def test_paths_that_are_no_model(tmp_path):
    (tmp_path / "file.txt").touch()
    for name, error, message in (
        ("file.txt", NotADirectoryError, "is a file; give the folder that holds config.json"),
        ("small.gguf", FileNotFoundError, "there is no file .*small.gguf"),
        ("no/such/folder", FileNotFoundError, "there is no folder .*pass --config.model=FOLDER"),
    ):
        with pytest.raises(error, match=message):
            io.locate(tmp_path / name, "--config.model")


def _failure(name: str) -> Exception:
    """What `snapshot_download` of the installed huggingface_hub raises."""
    from huggingface_hub import errors

    # Its HTTP library is another one in other versions.
    library = errors.HfHubHTTPError.__bases__[0].__module__.partition(".")[0]
    http = importlib.import_module(library)
    request = http.Request("GET", "https://huggingface.co/api/models/owner/name")
    response = http.Response({"gated": 403, "server": 503}.get(name, 401), request=request)
    unreached = errors.LocalEntryNotFoundError("An error happened while trying to locate.\nMore.")
    causes = {
        "offline": errors.OfflineModeIsEnabled("Cannot reach https://huggingface.co: offline."),
        "no network": http.ConnectError("[Errno -2] Name or service not known"),
        "slow": http.ConnectTimeout("timed out"),
        "server": errors.HfHubHTTPError("503 Server Error\nbusy", response=response),
    }
    if name in causes:
        unreached.__cause__ = causes[name]
        return unreached
    return {
        "not found": lambda: errors.RepositoryNotFoundError("401\n\nNo.", response=response),
        "gated": lambda: errors.GatedRepoError("403\n\nNo.", response=response),
        "proxy": lambda: http.ProxyError("bad gateway"),
        "name": lambda: errors.HFValidationError("Repo id must ..."),
        "disk": lambda: OSError(28, "No space left on device"),
        "other": lambda: RuntimeError("something\nelse"),
    }[name]()


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("offline", ConnectionError, "was not asked, because HF_HUB_OFFLINE is set"),
        ("no network", ConnectionError, "the hub could not be reached (no network?)"),
        ("slow", ConnectionError, "the hub could not be reached (no network?)"),
        ("server", ConnectionError, "the hub answered with an error"),
        ("proxy", ConnectionError, "could not be reached through the proxy (bad gateway)"),
        ("not found", FileNotFoundError, "the hub has no model of that name, or it is private"),
        ("gated", PermissionError, "accept them at https://huggingface.co/owner/name and log in"),
        ("name", FileNotFoundError, "no valid name of a hub model"),
        ("disk", OSError, "fetching it from the hub failed: [Errno 28] No space left on device"),
        ("other", FileNotFoundError, "the hub gave no model of that name: something."),
    ],
)
def test_what_the_hub_says_is_one_line_each(tmp_path, monkeypatch, name, error, message):
    hub = pytest.importorskip("huggingface_hub")

    def fail(*args, **kwargs):
        raise _failure(name)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "snapshot_download", fail)
    with pytest.raises(error) as raised:
        io.locate("owner/name", "--config.teacher")
    text = str(raised.value)
    assert text.startswith("there is no folder owner/name, and ")
    assert message in text
    assert text.endswith("Pass --config.teacher=FOLDER, a folder on this machine with the model.")
    assert "\n" not in text


def test_names_without_an_owner_are_hub_ids_too(tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    folder, asked = helpers.write(tmp_path / "cache"), []

    def fetch(name, allow_patterns):
        asked.append(name)
        return str(folder)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "snapshot_download", fetch)
    assert io.locate("bert-base-uncased") == folder
    assert io.locate("google-bert/bert-base-uncased") == folder
    assert asked == ["bert-base-uncased", "google-bert/bert-base-uncased"]


def test_the_hub_itself_when_it_is_switched_off(tmp_path):
    """Not a stand-in: huggingface_hub with HF_HUB_OFFLINE and an empty cache."""
    pytest.importorskip("huggingface_hub")
    code = """
        from mpojax.io import sources
        try:
            sources.locate("bert-base-uncased")
        except ConnectionError as error:
            print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("there is no folder bert-base-uncased, and the hub was not asked")
    assert "HF_HUB_OFFLINE" in done.stdout
