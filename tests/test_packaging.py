"""What an installation holds: `mpojax` alone, whether from a wheel or editable."""

import ast
import pathlib
import shutil
import subprocess
import sys
import zipfile

import pytest

ROOT = pathlib.Path(__file__).parents[1]
BUILD = """
from setuptools import build_meta
build_meta.build_wheel("wheel")
build_meta.build_editable("editable")
"""
IMPORT_ALL = """
import pkgutil, sys
sys.modules |= dict.fromkeys(("configs", "experiments", "tools", "tests"))  # not importable
import mpojax
for module in pkgutil.walk_packages(mpojax.__path__, "mpojax."):
    __import__(module.name)
print(mpojax.__file__)
"""


def _python(code: str, folder: pathlib.Path) -> str:
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={"PYTHONPATH": str(folder), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> pathlib.Path:
    """A folder with `wheel/*.whl` and `editable/*.whl`, built without a network."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("configs", "experiments", "mpojax", "tools"):
        ignored = shutil.ignore_patterns("__pycache__", "results")
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    for name in ("LICENSE", "README.md", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    for name in ("wheel", "editable"):
        (folder / name).mkdir()
    _python(BUILD, folder)
    return folder


def _archive(folder: pathlib.Path) -> zipfile.ZipFile:
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


def test_a_wheel_holds_the_package_and_nothing_else(built):
    with _archive(built / "wheel") as wheel:
        names = [name for name in wheel.namelist() if ".dist-info/" not in name]
        (metadata,) = (name for name in wheel.namelist() if name.endswith("/METADATA"))
        text = wheel.read(metadata).decode()
    assert {name.partition("/")[0] for name in names} == {"mpojax"}
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "mpojax").rglob("*.py")}
    assert set(names) == sources | {"mpojax/py.typed"}
    for line in ("License-Expression: Apache-2.0", "Requires-Python: >=3.11", "Author: "):
        assert f"\n{line}" in text


def test_an_editable_installation_maps_the_package_alone(built):
    """Also run from elsewhere, `configs` and `experiments` are whatever the user calls so."""
    with _archive(built / "editable") as wheel:
        names = [name for name in wheel.namelist() if ".dist-info/" not in name]
        (finder,) = (name for name in names if name.endswith("_finder.py"))
        source = wheel.read(finder).decode()
    assert all(name.startswith("__editable__") for name in names)
    assigned = {
        node.target.id: ast.literal_eval(node.value)
        for node in ast.parse(source).body
        if isinstance(node, ast.AnnAssign)
    }
    assert assigned["MAPPING"] == {"mpojax": str(built / "mpojax")}
    assert not assigned["NAMESPACES"]


def test_a_wheel_needs_nothing_of_the_checkout(built, tmp_path):
    with _archive(built / "wheel") as wheel:
        wheel.extractall(tmp_path)
    assert _python(IMPORT_ALL, tmp_path) == str(tmp_path / "mpojax" / "__init__.py")
