"""A folder with toy models in which the code of a page runs."""

import shutil

import pytest

from tests.docs import checkpoints


@pytest.fixture(scope="package")
def toys(tmp_path_factory):
    return checkpoints.write(tmp_path_factory.mktemp("toys"))


@pytest.fixture
def page_folder(toys, tmp_path, monkeypatch):
    """A copy of the toys, the current folder of the test."""
    folder = shutil.copytree(toys, tmp_path / "page")
    monkeypatch.chdir(folder)
    return folder
