"""A checkpoint and a task that the runs of several files share."""

import contextlib
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


@pytest.fixture(autouse=True)
def programs_are_kept(monkeypatch):
    """Between the cells of a sweep: other tests go on with what this process has compiled."""
    monkeypatch.setattr(sweep, "_free_memory", lambda: None)


@pytest.fixture
def stopped_at():
    """A context in which runs are told to stop after a step, as by a signal."""

    @contextlib.contextmanager
    def stop(step: int):
        with mock.patch.object(training, "StopOnSignal", return_value=helpers.Stop(step)):
            yield

    return stop
