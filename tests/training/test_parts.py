"""Checkpoints, metrics and workdir, each alone."""

import dataclasses
import errno
import json
import os
from typing import ClassVar

import jax
import numpy as np
import pytest

from mpojax import files, training
from mpojax.training import metrics as metrics_lib
from mpojax.training import workdir as workdir_lib
from tests.training import helpers


class TestCheckpoints:
    def test_round_trip_relative_folder_and_limit(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        state, _ = helpers.start()

        with training.Checkpoints("saved", keep_last=2) as saved:
            for step in (1, 2, 3):
                at = dataclasses.replace(state, step=jax.numpy.int32(step))
                saved.save(at, {"note": step})
            saved.wait()
            assert saved.all_steps() == [2, 3]
            assert saved.extra() == {"note": 3}
            helpers.assert_same_bits(saved.restore(state), at)
        assert (tmp_path / "saved" / "3").is_dir()

    def test_other_shapes_are_named(self, tmp_path):
        state, optimizer = helpers.start()
        with training.Checkpoints(tmp_path) as saved:
            saved.save(state)
            saved.wait()
            model = helpers.Classifier()
            model.head["bias"] = type(model.head["bias"])(np.zeros(9, np.float32))
            other = state.with_model(model, helpers.LIGHTWEIGHT, optimizer)
            with pytest.raises(ValueError, match=r"head/bias: \(\(4,\), 'float32'\) in the check"):
                saved.restore(other)
            model.surplus = type(model.head["bias"])(np.zeros(9, np.float32))
            optimizer = training.make_optimizer({}, training.roles(model), 5)
            other = state.with_model(model, helpers.LIGHTWEIGHT, optimizer)
            with pytest.raises(ValueError, match="surplus: not in the checkpoint"):
                saved.restore(other)

    @pytest.mark.parametrize(
        "kind", [OSError(errno.ENOSPC, ""), ValueError("[os_error_code='28']")]
    )
    def test_disk_full(self, tmp_path, monkeypatch, kind):
        state, _ = helpers.start()

        def full(*unused, **also_unused):
            raise kind

        with training.Checkpoints(tmp_path) as saved:
            saved.save(state)
            saved.wait()
            with monkeypatch.context() as patch:
                patch.setattr(saved._manager, "save", full)
                with pytest.raises(OSError, match=r"cannot write .*: the disk is full"):
                    saved.save(dataclasses.replace(state, step=jax.numpy.int32(1)))
        with training.Checkpoints(tmp_path) as saved:
            helpers.assert_same_bits(saved.restore(state), state)

    def test_nothing_saved(self, tmp_path):
        state, _ = helpers.start()
        with training.Checkpoints(tmp_path) as saved:
            assert saved.latest_step() is None
            with pytest.raises(FileNotFoundError, match="no checkpoint"):
                saved.restore(state)

    def test_a_file_where_the_folder_should_be(self, tmp_path):
        (tmp_path / "file").write_text("kept")
        with pytest.raises(OSError, match="a file stands where a folder is needed"):
            training.Checkpoints(tmp_path / "file" / "checkpoints")
        assert (tmp_path / "file").read_text() == "kept"


class TestMetrics:
    def test_lines_after_the_resumed_step_are_dropped(self, tmp_path):
        with training.MetricsWriter(tmp_path) as writer:
            for step in range(1, 6):
                writer.write(step, {"loss": 1.0 / step})
        path = tmp_path / "metrics.jsonl"
        with open(path, "a") as file:
            file.write('{"step": 6, "lo')  # killed while writing
        with training.MetricsWriter(tmp_path, resume_step=3) as writer:
            writer.write(4, {"loss": 9.0})
        assert [(x["step"], x["loss"]) for x in metrics_lib.read(path)] == [
            (1, 1.0),
            (2, 0.5),
            (3, pytest.approx(1 / 3)),
            (4, 9.0),
        ]
        assert list((tmp_path / "tensorboard").iterdir())

    def test_not_finite_is_null(self, tmp_path):
        with training.MetricsWriter(tmp_path) as writer:
            writer.write(1, {"x": float("nan"), "y": 2})
        assert metrics_lib.read(tmp_path / "metrics.jsonl") == [{"step": 1, "x": None, "y": 2.0}]

    def test_unwritable(self, tmp_path):
        (tmp_path / "file").write_text("kept")
        with pytest.raises(OSError, match="a file stands where a folder is needed"):
            training.MetricsWriter(tmp_path / "file")


class TestWorkdir:
    CONFIG: ClassVar = {"seed": 1, "model": {"bond": 8, "layers": (1, 2)}}

    def test_fresh_resume_finished(self, tmp_path):
        path = tmp_path / "deep" / "run"
        run = training.Workdir(path, self.CONFIG)
        assert not run.resuming
        assert not run.finished
        assert json.loads((path / "config.json").read_text())["model"]["layers"] == [1, 2]
        run = training.Workdir(path, self.CONFIG)
        assert run.resuming
        starts = json.loads((path / "versions.json").read_text())
        assert len(starts) == 2
        assert starts[0]["packages"]["jax"] == jax.__version__
        assert starts[0]["device_count"] == jax.device_count()
        run.write_result({"accuracy": np.float32(0.5)})
        again = training.Workdir(path, self.CONFIG)
        assert again.finished
        assert json.loads((path / "result.json").read_text()) == {"accuracy": 0.5}

    def test_another_experiment(self, tmp_path):
        training.Workdir(tmp_path, self.CONFIG)
        before = sorted((p.name, p.read_bytes()) for p in tmp_path.iterdir())
        other = {"seed": 1, "model": {"bond": 16, "layers": (1, 2)}, "new": True}
        with pytest.raises(ValueError, match=r"another experiment") as error:
            training.Workdir(tmp_path, other)
        assert "model.bond: 8 there, 16 here" in str(error.value)
        assert "new: '(absent)' there, True here" in str(error.value)
        assert "another --workdir" in str(error.value)
        assert sorted((p.name, p.read_bytes()) for p in tmp_path.iterdir()) == before

    def test_another_mesh_is_the_same_run(self, tmp_path):
        training.Workdir(tmp_path, self.CONFIG | {"mesh": {"fsdp": 1}})
        assert training.Workdir(tmp_path, self.CONFIG | {"mesh": {"fsdp": 4}}).resuming

    def test_folder_with_something_else(self, tmp_path):
        (tmp_path / "thesis.tex").write_text("precious")
        with pytest.raises(ValueError, match=r"is not empty and holds no run.*thesis.tex"):
            training.Workdir(tmp_path, self.CONFIG)
        assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]

    def test_corrupt_config(self, tmp_path):
        (tmp_path / "config.json").write_text("{")
        with pytest.raises(ValueError, match="not valid JSON"):
            training.Workdir(tmp_path, self.CONFIG)

    def test_a_file_in_place_of_the_folder(self, tmp_path):
        (tmp_path / "file").write_text("kept")
        for path in (tmp_path / "file", tmp_path / "file" / "run"):
            with pytest.raises(OSError, match="a file stands where a folder is needed"):
                training.Workdir(path, self.CONFIG)
        assert (tmp_path / "file").read_text() == "kept"

    @pytest.mark.parametrize(
        ("number", "message"),
        [
            (errno.ENOSPC, "disk is full"),
            (errno.EACCES, "no permission"),
            (errno.EROFS, "no permission"),
        ],
    )
    def test_disk_full_keeps_what_was_there(self, tmp_path, monkeypatch, number, message):
        run = training.Workdir(tmp_path, self.CONFIG)
        run.write_result({"accuracy": 1})

        def full(*unused):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match=message) as error:
            run.write_result({"accuracy": 2})
        assert "result.json" in str(error.value)
        monkeypatch.undo()
        assert json.loads((tmp_path / "result.json").read_text()) == {"accuracy": 1}
        assert not [p for p in tmp_path.iterdir() if files.is_leftover(p)]

    def test_what_json_cannot_hold(self, tmp_path):
        with pytest.raises(ValueError, match="as JSON"):
            workdir_lib.plain({"f": lambda: 0})
