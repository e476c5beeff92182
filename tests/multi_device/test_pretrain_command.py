"""The command of pre-training: the same numbers on one device and on two processes of four."""

import json
import os
import pathlib
import random
import socket
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[2]
WORDS = "the a river house green quick brown fox jumps over lazy dog sun moon water stone"
FIELDS = {
    "model.num_layers": 4,
    "model.hidden_size": 32,
    "model.num_heads": 4,
    "model.embedding_size": 16,
    "model.groups": 2,
    "model.adapter_rank": 2,
    "optimizer.name": "lamb",
    "length": 32,
    "batch_size": 16,
    "steps": 6,
    "eval_batch_size": 16,
    "eval_rows": 20,
    "eval_every": 3,
    "samples_every": 3,
    "statistics_every": 2,
    "log_every": 1,
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    draw = random.Random(0)
    for name in ("a", "b", "c"):
        sentences = [
            " ".join(draw.choices(WORDS.split(), k=8)).capitalize() + "." for _ in range(300)
        ]
        (folder / f"{name}.txt").write_text("\n".join(sentences))
    made = tmp_path_factory.mktemp("made") / "corpus"
    run(["-m", "tools.prepare_corpus", f"--text={folder}", f"--out={made}", "--vocab_size=120"])
    return made


def start(arguments, devices=1):
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(running):
    outputs = []
    try:
        for process in running:
            output, errors = process.communicate(timeout=240)
            assert process.returncode == 0, errors[-3000:]
            outputs.append(output)
    finally:
        for process in running:
            process.kill()
            process.communicate()
    return outputs


def run(arguments, **more):
    return finish([start(arguments, **more)])[0]


def command(corpus, *more):
    fields = [f"--config.{name}={value}" for name, value in FIELDS.items()]
    config = "--config=configs/mpobert/pretraining.py"
    return ["-m", "experiments.train", config, f"--config.corpus={corpus}", *fields, *more]


@pytest.mark.slow
def test_one_command_for_one_device_and_several_processes(tmp_path, corpus):
    run(command(corpus, f"--workdir={tmp_path / 'one'}"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    more = [f"--workdir={tmp_path / 'two'}", "--config.mesh.fsdp=2", "--config.mesh.tensor=2"]
    more += [f"--coordinator=127.0.0.1:{port}", "--num_processes=2"]
    both = [start(command(corpus, *more, f"--process_id={i}"), devices=4) for i in (0, 1)]
    first, second = finish(both)
    assert "mlm_loss" in first
    assert "mlm_loss" not in second
    results = [json.loads((tmp_path / n / "result.json").read_text()) for n in ("one", "two")]
    for name, value in results[0]["metrics"].items():
        assert results[1]["metrics"][name] == pytest.approx(value, abs=1e-5), name
    lines = [
        [json.loads(line) for line in (tmp_path / n / "metrics.jsonl").read_text().splitlines()]
        for n in ("one", "two")
    ]
    losses = [[line["loss"] for line in part if "loss" in line] for part in lines]
    assert len(losses[0]) == 6
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    names = [{p.name for p in (tmp_path / n).iterdir()} for n in ("one", "two")]
    assert names[0] == names[1]


def start_two(corpus, folder):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    more = [f"--workdir={folder}", "--config.mesh.fsdp=2", "--config.checkpoint_every=10"]
    more += ["--config.steps=200", "--config.eval_every=100", "--config.samples_every=0"]
    more += ["--config.statistics_every=0", f"--coordinator=127.0.0.1:{port}", "--num_processes=2"]
    return [start(command(corpus, *more, f"--process_id={i}")) for i in (0, 1)]


@pytest.mark.slow
def test_the_loss_of_either_process_ends_both_and_the_run_resumes_to_the_same_bits(
    tmp_path, corpus
):
    finish(start_two(corpus, tmp_path / "whole"))
    for killed, first_checkpoint in ((1, 20), (0, 60)):
        running = start_two(corpus, tmp_path / "killed")
        folder = tmp_path / "killed" / "checkpoints"
        deadline = time.monotonic() + 240
        while not any(int(p.name) >= first_checkpoint for p in folder.glob("[0-9]*[0-9]")):
            assert time.monotonic() < deadline
            assert [process.poll() for process in running] == [None, None]
            time.sleep(0.01)
        running[killed].kill()
        _, errors = running[1 - killed].communicate(timeout=30)
        assert running[1 - killed].returncode == 2, errors
        assert f"error: process {killed} of 2 is gone" in errors
        assert "Traceback" not in errors
        assert folder.is_dir()  # not at its end yet
        running[killed].communicate()
    finish(start_two(corpus, tmp_path / "killed"))
    results = [json.loads((tmp_path / n / "result.json").read_text()) for n in ("whole", "killed")]
    assert results[0]["metrics"] == results[1]["metrics"]
    lines = [(tmp_path / n / "metrics.jsonl").read_text() for n in ("whole", "killed")]
    assert lines[0] == lines[1]


@pytest.mark.slow
def test_dry_run_needs_no_folder_and_makes_none(tmp_path, corpus):
    made = run(command(corpus, "--dry_run", "--config.mesh.fsdp=4"), devices=8)
    assert "mesh: data=2 x fsdp=4" in made
    assert "encoder/stacks/0/attention/query/cores/2" in made
