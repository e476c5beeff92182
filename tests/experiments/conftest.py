"""A checkpoint and a task that the runs of several files share."""

from unittest import mock

import pytest

from experiments import sweep
from mpojax import training
from tests.experiments import toy_encoder
from tests.training import helpers


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    return toy_encoder.write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "model")


@pytest.fixture(scope="session")
def texts(tmp_path_factory):
    """A task of a user's own: two TSV files."""
    return toy_encoder.write_texts(tmp_path_factory.mktemp("texts"), train=48, dev=12)


@pytest.fixture(autouse=True, scope="module")
def programs_are_kept():
    """Between the cells of a sweep: other tests go on with what this process has compiled."""
    with mock.patch.object(sweep, "_free_memory"):
        yield


@pytest.fixture(scope="session")
def stopped_at():
    """A context in which runs are told to stop after a step, as by a signal."""
    return lambda step: _with_hook(helpers.Stop(step))


@pytest.fixture(scope="session")
def copied_at():
    """A context in which runs copy their folder after a step that is saved; see `CopyFolder`."""
    return lambda step, *folders: _with_hook(helpers.CopyFolder(step, *folders))


def _with_hook(hook):
    return mock.patch.object(training, "StopOnSignal", return_value=hook)
