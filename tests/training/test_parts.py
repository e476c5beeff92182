"""Checkpoints, metrics and workdir, each alone."""

import dataclasses
import errno
import json
import os
import re
import shutil
import struct
import threading
import time
from typing import ClassVar

import jax
import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from mpojax import files, locks, training
from mpojax.training import metrics as metrics_lib
from mpojax.training import progress, update_statistics
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
            model.unexpected = type(model.head["bias"])(np.zeros(9, np.float32))
            optimizer = training.make_optimizer({}, training.roles(model), 5)
            other = state.with_model(model, helpers.LIGHTWEIGHT, optimizer)
            with pytest.raises(ValueError, match="unexpected: not in the checkpoint"):
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
            with pytest.raises(FileNotFoundError, match=r"no checkpoint in .*; has \[\]"):
                saved.restore(state)
            with pytest.raises(FileNotFoundError, match=r"no checkpoint 0 in .*; has \[\]"):
                saved.restore(state, step=0)

    @pytest.mark.parametrize("read", ["restore", "extra", "recover"])
    def test_a_save_in_the_background_is_waited_for(self, tmp_path, monkeypatch, read):
        state, _ = helpers.start()
        with training.Checkpoints(tmp_path) as saved:
            waited = saved._manager.wait_until_finished
            calls = []
            monkeypatch.setattr(
                saved._manager, "wait_until_finished", lambda: (calls.append(read), waited())
            )
            saved.save(state, {"note": 1})
            if read == "restore":
                helpers.assert_same_bits(saved.restore(state), state)
            else:
                assert saved.extra() == {"note": 1} if read == "extra" else saved.recover() == 0
            assert calls
        assert [path.name for path in tmp_path.iterdir()] == ["0"]

    @pytest.mark.parametrize("kind", [ValueError, KeyError, OSError])
    def test_whole_files_are_not_blamed(self, tmp_path, monkeypatch, kind):
        state, _ = helpers.start()
        with training.Checkpoints(tmp_path) as saved:
            saved.save(state)

            def refuse(*unused, **also_unused):
                raise kind("no such\nsharding")

            monkeypatch.setattr(saved._manager, "restore", refuse)
            with pytest.raises(ValueError, match=r"checkpoint 0 .*files are whole: .*") as error:
                saved.restore(state)
            assert "sharding" in str(error.value)
            assert "damaged" not in str(error.value)
            assert "\n" not in str(error.value)

    def test_a_file_where_the_folder_should_be(self, tmp_path):
        (tmp_path / "file").write_text("kept")
        with pytest.raises(OSError, match="a file stands where a folder is needed"):
            training.Checkpoints(tmp_path / "file" / "checkpoints")
        assert (tmp_path / "file").read_text() == "kept"


def _cut(step):
    for path in step.rglob("d/*"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _empty(step):
    shutil.rmtree(step)
    step.mkdir()


def _without(pattern):
    def remove(step):
        for path in list(step.glob(pattern)):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return remove


DAMAGES = {
    "files cut short": (_cut, "Byte range"),
    "nothing but the folder": (_empty, "extra/metadata"),
    "no tree": (_without("state/_METADATA"), "No such file.*_METADATA"),
    "no manifest": (_without("state/manifest.ocdbt"), "manifest"),
    "no arrays": (_without("state/d"), "state/d/"),
    "no metadata": (_without("extra/metadata"), "extra/metadata"),
    "broken metadata": (lambda s: (s / "extra" / "metadata").write_text("{"), "is not valid JSON"),
}


@pytest.fixture(scope="module")
def saved_run(tmp_path_factory):
    """(folder, final state) of a run with checkpoints 4 and 6."""
    folder = tmp_path_factory.mktemp("saved") / "run"
    hooks = [training.Checkpoint(every=2, keep_last=2)]
    return folder, helpers.run(folder, steps=6, hooks=hooks).state


class TestDamage:
    """As a copy that was not finished leaves a folder."""

    @pytest.mark.parametrize("kind", DAMAGES)
    def test_the_checkpoint_before_is_taken(self, tmp_path, saved_run, caplog, kind):
        damage, problem = DAMAGES[kind]
        run = shutil.copytree(saved_run[0], tmp_path / "run")
        damage(run / "checkpoints" / "6")
        hooks = [training.Checkpoint(every=2, keep_last=2)]
        again = helpers.run(run, steps=6, hooks=hooks)
        assert again.steps_run == 2
        helpers.assert_same_bits(again.state, saved_run[1])
        warnings = [record.getMessage() for record in caplog.records]
        message = f"checkpoint 6 in .* is damaged and set aside: .*{problem}.*Going on from 4"
        assert re.search(message, "\n".join(warnings))
        names = sorted(path.name for path in (run / "checkpoints").iterdir())
        assert names == ["4", "6", "damaged-6"]

    @pytest.mark.parametrize("kind", ["files cut short", "no tree", "nothing but the folder"])
    def test_no_other_one(self, tmp_path, saved_run, kind):
        run = shutil.copytree(saved_run[0], tmp_path / "run")
        for step in ("4", "6"):
            DAMAGES[kind][0](run / "checkpoints" / step)
        with pytest.raises(
            ValueError, match=r"no checkpoint in .* can be read, of \[4, 6\]: .*Copy"
        ) as error:
            helpers.run(run, steps=6, hooks=[training.Checkpoint()])
        assert "\n" not in str(error.value)
        assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["4", "6"]

    @pytest.mark.parametrize("kind", DAMAGES)
    @pytest.mark.parametrize("alone", [False, True])
    def test_read_directly(self, tmp_path, saved_run, kind, alone):
        """One line that blames the files, not the model."""
        shutil.copytree(saved_run[0] / "checkpoints", tmp_path / "run")
        if alone:
            shutil.rmtree(tmp_path / "run" / "4")
        DAMAGES[kind][0](tmp_path / "run" / "6")

        def read():
            with training.Checkpoints(tmp_path / "run") as saved:
                saved.extra()
                saved.restore(saved_run[1])

        with pytest.raises(ValueError, match=r"^checkpoint 6 in .* cannot be read") as error:
            read()
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < 700
        assert ("remove it to resume from 4" in str(error.value)) == (not alone)


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

    @pytest.mark.parametrize("part", ["lines", "events"])
    def test_full_disk(self, tmp_path, part):
        """The caller gets one error, no thread has another one, and the next start goes on."""
        before = threading.active_count()
        writer = training.MetricsWriter(tmp_path)
        assert threading.active_count() == before
        writer.write(1, {"loss": 1.0})
        if part == "lines":
            writer._lines._file.close()
            writer._lines._file = open("/dev/full", "ab", buffering=0)  # noqa: SIM115
        else:
            writer._events._writer._writer.close()
            writer._events._writer._writer = open("/dev/full", "wb")  # noqa: SIM115

        def write():
            for step in range(2, 1000):  # the events are buffered
                writer.write(step, {"loss": 1.0})

        with pytest.raises(OSError, match=r"cannot write .*the disk is full; free some space"):
            write()
        writer.close()
        with training.MetricsWriter(tmp_path, resume_step=1) as writer:
            writer.write(2, {"loss": 2.0})
        lines = metrics_lib.read(tmp_path / "metrics.jsonl")
        assert [line["loss"] for line in lines] == [1.0, 2.0]

    def test_events_are_those_that_tensorboard_reads(self, tmp_path):
        for start in (0, 1):
            with training.MetricsWriter(tmp_path, resume_step=start) as writer:
                writer.write(start + 1, {"loss": 0.5, "dev/f1": float("nan")})
        [path] = (tmp_path / "tensorboard").iterdir()
        content, events = path.read_bytes(), []
        while content:
            [length] = struct.unpack("<Q", content[:8])
            events.append(event_pb2.Event.FromString(content[12 : 12 + length]))
            content = content[16 + length :]
        assert events[0].file_version == "brain.Event:2"
        assert (events[1].step, events[1].session_log.status) == (2, event_pb2.SessionLog.START)
        scalars = [(e.step, e.summary.value[0]) for e in events[2:]]
        assert [(step, x.tag) for step, x in scalars] == [(2, "loss"), (2, "dev/f1")]
        assert scalars[0][1].simple_value == 0.5
        assert np.isnan(scalars[1][1].simple_value)

    @pytest.mark.parametrize("kind", ["soft", "hard"])
    def test_events_are_not_written_through_links(self, tmp_path, monkeypatch, kind):
        monkeypatch.setattr(metrics_lib.time, "time", lambda: 1.0)
        with training.MetricsWriter(tmp_path):
            pass
        [path] = (tmp_path / "tensorboard").iterdir()
        path.unlink()
        target = tmp_path / "precious"
        target.write_text("kept")
        path.symlink_to(target) if kind == "soft" else path.hardlink_to(target)
        with training.MetricsWriter(tmp_path):
            pass
        assert target.read_text() == "kept"
        assert not path.is_symlink()
        assert path.stat().st_size > 0

    def test_through_links(self, tmp_path):
        target = tmp_path / "precious"
        target.write_text("kept")
        for name in ("metrics.jsonl", update_statistics.NAME):
            path = tmp_path / "run" / name
            path.parent.mkdir(exist_ok=True)
            path.symlink_to(tmp_path / "absent")
            with pytest.raises(ValueError, match="is a symbolic link"):
                metrics_lib.JsonLines(path, 0)
            path.unlink()
            path.hardlink_to(target)
            lines = metrics_lib.JsonLines(path, 0)  # a file of its own takes the place of the link
            lines.write({"step": 1})
            lines.close()
            assert path.read_text() == '{"step": 1}\n'
        assert target.read_text() == "kept"
        assert not (tmp_path / "absent").exists()

    def test_a_broken_line_is_named(self, tmp_path):
        (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n}{\n{"step": 2}\n')
        with pytest.raises(ValueError, match=r"metrics.jsonl: a line is not valid JSON"):
            training.MetricsWriter(tmp_path)


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

    def test_a_run_begun_before_a_field_existed_resumes(self, tmp_path):
        """What it did is what the field's default says."""
        training.Workdir(tmp_path, self.CONFIG | {"variants": {"mpo": {"bond": 4}}})
        model = self.CONFIG["model"]
        now = self.CONFIG | {"dtype": "float32", "remat": False, "keep_dense": True}
        now["variants"] = {"mpo": {"bond": 4, "keep_dense": True}}
        assert training.Workdir(tmp_path, now).resuming
        for change, line in (
            ({"dtype": "bfloat16"}, "dtype: 'float32' there, 'bfloat16' here"),
            ({"model": model | {"remat": True}}, "model.remat: False there, True here"),
            ({"variants": {"mpo": {"bond": 4, "keep_dense": False}}}, "keep_dense: True there"),
            ({"pooling": "mean"}, "pooling: '(absent)' there, 'mean' here"),
        ):
            with pytest.raises(ValueError, match=re.escape(line)) as error:
                training.Workdir(tmp_path, now | change)
            assert str(error.value).count(" there, ") == 1

    def test_a_run_begun_before_a_field_was_renamed_resumes(self, tmp_path):
        fields = {"accumulate": 2, "texts": "a", "opdf": {"lam": 0.5, "matrices": "x"}}
        now = {"grad_accum_steps": 2, "dataset": "a"}
        now["opdf"] = {"alignment_weight": 0.5, "matrices": "x"}
        training.Workdir(tmp_path / "run", fields)
        assert training.Workdir(tmp_path / "run", now).resuming
        training.Workdir(tmp_path / "sweep", {"cell": fields})
        assert training.Workdir(tmp_path / "sweep", {"cell": now}).resuming
        with pytest.raises(ValueError, match="grad_accum_steps: 2 there, 3 here"):
            training.Workdir(tmp_path / "run", now | {"grad_accum_steps": 3})

    @pytest.mark.parametrize(
        ("fields", "method"),
        [
            ({}, "tuning"),
            ({"squeeze": {"steps": 3}}, "squeezing"),
            ({"finalise": "continue", "method": "lora"}, "pet_search"),
            ({"teacher": "folder"}, "distillation"),
            ({"opf": {"strategy": "static"}}, "opf"),
        ],
    )
    def test_a_run_begun_before_its_config_named_the_method_resumes(self, tmp_path, fields, method):
        training.Workdir(tmp_path, {"steps": 1} | fields)
        now = workdir_lib.renamed({"steps": 1} | fields) | {"method": method}
        assert training.Workdir(tmp_path, now).resuming
        assert ("series" in now) == (method == "pet_search")
        with pytest.raises(ValueError, match=f"method: '{method}' there, 'other' here"):
            training.Workdir(tmp_path, now | {"method": "other"})

    def test_a_run_begun_before_a_field_was_removed_resumes(self, tmp_path):
        mask = {"rate": None, "mode": "skip", "draw": "step"}
        removed = {"schedule_unit": "steps", "budget_seconds": 0.0, "central_mask": mask}
        now = {"optimizer": {"name": "adamw", "schedule": "linear"}, "search": {"budget": 9}}
        then = {
            "optimizer": now["optimizer"] | removed,
            "search": {"budget": 9, "schedule": "geometric"},
        }
        training.Workdir(tmp_path / "run", then)
        assert training.Workdir(tmp_path / "run", now).resuming
        then["optimizer"] |= {"budget_seconds": 60.0}
        training.Workdir(tmp_path / "other", then)
        with pytest.raises(ValueError, match=r"budget_seconds: 60.0 there, '\(absent\)' here"):
            training.Workdir(tmp_path / "other", now)

    @pytest.mark.parametrize("field", ["data_dir", "corpus"])
    def test_data_may_move_once_it_is_noted_what_they_are(self, tmp_path, caplog, field):
        parts = {"train": {"examples": 1, "fingerprint": "a"}}
        run = training.Workdir(tmp_path, self.CONFIG | {field: "old"})
        with pytest.raises(ValueError, match=f"{field}: 'old' there, 'new' here"):
            training.Workdir(tmp_path, self.CONFIG | {field: "new"})
        run.check_data(parts)
        moved = training.Workdir(tmp_path, self.CONFIG | {field: "new"})
        moved.check_data(parts)
        with pytest.raises(ValueError, match="on other data"):
            moved.check_data({"train": {"examples": 1, "fingerprint": "b"}})
        with pytest.raises(ValueError, match="seed: 1 there, 2 here"):
            training.Workdir(tmp_path, self.CONFIG | {field: "new", "seed": 2})
        run.write_result({})
        caplog.set_level("INFO")
        assert training.Workdir(tmp_path, self.CONFIG | {field: "new"}).finished
        assert f"not read again: {field}: 'old' there, 'new' here" in caplog.text

    def test_folder_with_something_else(self, tmp_path):
        (tmp_path / "thesis.tex").write_text("precious")
        with pytest.raises(ValueError, match=r"is not empty and holds no run.*thesis.tex"):
            training.Workdir(tmp_path, self.CONFIG)
        assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]

    def test_corrupt_config(self, tmp_path):
        (tmp_path / "config.json").write_text("{")
        with pytest.raises(ValueError, match="not valid JSON"):
            training.Workdir(tmp_path, self.CONFIG)

    def test_an_unknown_address_is_refused(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(ValueError, match="ftp://bucket/run is no address that can be read"):
            training.Workdir("ftp://bucket/run", self.CONFIG)
        assert not list(tmp_path.iterdir())

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

    @pytest.mark.parametrize(
        "name", ["config.json", "versions.json", "data.json", "result.json", "metrics.jsonl"]
    )
    def test_what_files_lead_to_stays(self, tmp_path, name):
        """A run in whose folder one of its files is a link to another run's."""
        runs = [tmp_path / "other", tmp_path / "run"]
        for path in runs:
            self.work(path)
        files_before = {path: path.read_bytes() for path in runs[0].glob("*.json*")}
        (runs[1] / name).unlink()
        (runs[1] / name).symlink_to(runs[0] / name)
        (runs[1] / "note").symlink_to(tmp_path / "absent")
        self.work(runs[1])
        assert {path: path.read_bytes() for path in runs[0].glob("*.json*")} == files_before
        assert (runs[1] / name).is_symlink() == (name in ("config.json", "data.json"))

    def work(self, path):
        """A run from start to end."""
        run = training.Workdir(path, self.CONFIG)
        run.check_data({"train": {"examples": 1, "fingerprint": "a"}})
        with training.MetricsWriter(path, resume_step=1) as writer:
            writer.write(2, {"loss": 1.0})
        run.write_result({"runs": len(json.loads((path / "versions.json").read_text()))})

    @pytest.mark.parametrize("name", ["checkpoints", "best-dev", "tensorboard"])
    def test_folders_may_be_links_to_another_disk(self, tmp_path, name):
        disk, run = tmp_path / "disk", tmp_path / "run"
        disk.mkdir()
        training.Workdir(run, self.CONFIG)
        (run / name).symlink_to(disk)
        for steps in (4, 6):
            training.Workdir(run, self.CONFIG)
            hooks = [helpers.dev_hook(every=2), training.Checkpoint(every=2), helpers.Stop(steps)]
            result = helpers.run(run, steps=6, hooks=hooks)
        assert result.steps_run == 2
        assert (run / name).is_symlink()
        assert list(disk.iterdir())

    def test_a_folder_backed_up_with_hard_links_resumes(self, tmp_path):
        """As by `cp -al`: the copy stays as it is."""
        run, copy = tmp_path / "run", tmp_path / "copy"

        def start(steps):
            training.Workdir(run, self.CONFIG)
            hooks = [training.Checkpoint(every=2), helpers.Stop(steps)]
            result = helpers.run(run, steps=6, hooks=hooks)
            locks.release(run)
            return result

        start(4)
        shutil.copytree(run, copy, copy_function=os.link)
        before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
        assert (run / locks.NAME).samefile(copy / locks.NAME)
        assert start(6).steps_run == 2
        assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before
        assert training.Workdir(copy, self.CONFIG).resuming

    def test_the_whole_folder_may_be_reached_through_a_link(self, tmp_path):
        (tmp_path / "disk").mkdir()
        (tmp_path / "run").symlink_to(tmp_path / "disk")
        assert not training.Workdir(tmp_path / "run", self.CONFIG).resuming
        assert training.Workdir(tmp_path / "run", self.CONFIG).resuming

    def test_what_killed_starts_left_is_removed(self, tmp_path):
        run = training.Workdir(tmp_path, self.CONFIG)
        inner = training.Workdir(tmp_path / "cells" / "one", self.CONFIG)  # may be at work
        left, kept = [], [inner.path / ".mpojax-9.tmp.json"]
        for folder in (tmp_path, tmp_path / "plots", tmp_path / "model" / "deep"):
            folder.mkdir(parents=True, exist_ok=True)
            left += [folder / ".mpojax-0a1b.tmp.json", folder / ".mpojax-0a1b.tmp" / "file"]
            kept += [folder / ".mpojax.json", folder / "a.tmp"]
        for path in (*left, *kept):
            path.parent.mkdir(exist_ok=True)
            path.write_text("x")
        locks.release(run.path)
        assert training.Workdir(tmp_path, self.CONFIG).resuming
        assert not [
            path
            for path in left
            if path.exists() or (path.parent.name.endswith("tmp") and path.parent.exists())
        ]
        assert all(path.exists() for path in kept)
        assert training.Workdir(inner.path, self.CONFIG).resuming
        assert not kept[0].exists()


class TestLines:
    def test_slow_work_is_never_silent_and_fast_work_always(self, caplog, monkeypatch):
        clock = iter([0.0, 10.0, 16.0, 30.0, 32.0])
        monkeypatch.setattr(progress.time, "perf_counter", lambda: next(clock))
        advance = progress.lines("evaluating", at_end=False)
        with caplog.at_level("INFO", logger="absl"):
            for done in range(1, 5):
                advance(done, 4, "")
        said = [record.getMessage() for record in caplog.records]
        assert said == ["evaluating: 2 of 4, 16 s left", "evaluating: 4 of 4, 0 s left"]

    def test_waiting_says_how_long_and_ends_with_the_work(self, caplog):
        with caplog.at_level("INFO", logger="absl"):
            with progress.waiting("compiling", every_seconds=0.01):
                while len(caplog.records) < 2:
                    time.sleep(0.01)
            said = [record.getMessage() for record in caplog.records]
            with progress.waiting("timing", every_seconds=60.0):
                pass
        assert said[0] == "compiling: 0 s so far"
        assert len(caplog.records) <= len(said) + 1

    def test_the_end_is_said_where_wanted(self, caplog):
        with caplog.at_level("INFO", logger="absl"):
            for at_end in (True, False):
                progress.lines(str(at_end), at_end=at_end)(1, 1, "loss 0.5")
        assert [r.getMessage() for r in caplog.records] == ["True: 1 of 1, loss 0.5, 0 s left"]
