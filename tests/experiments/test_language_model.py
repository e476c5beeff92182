"""Runs of decoders on plain text: from scratch, then with experts, on texts of toy size."""

import math
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from flax import nnx

from experiments import tasks, train
from experiments.tasks import loading
from mpojax import compression, data, io, models, training
from mpojax.methods import options as options_lib
from mpojax.methods.mpoe import router_statistics
from tests.experiments import toy, toy_language
from tests.experiments.toy import result_of
from tests.experiments.toy_language import logged, put

EXPERTS = {"experts__form": "mpoe", "experts__number": 4, "experts__cores": 3}


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    return toy_language.write(tmp_path_factory.mktemp("texts"))


@pytest.fixture(scope="module")
def base(texts, tmp_path_factory):
    """A finished run of a fresh decoder, with its model."""
    folder = tmp_path_factory.mktemp("base") / "run"
    config = toy_language.config(texts, variant="base", steps=30, save_model=True)
    assert toy.main(config, str(folder)) == 0
    return folder


def tuning(texts, base, **fields):
    """Four steps of the model of `base`, as MPOE experts."""
    config = toy_language.config(texts, model_config={}, tokenizer="", model=str(base / "model"))
    config.optimizer.learning_rate, config.save_model = 1e-3, True
    config.optimizer.central_mask.rate = 0.5
    return put(config, EXPERTS | fields)


GENERATION = {
    "bleu_prompts": 3,
    "bleu_prompt_length": 8,
    "bleu_length": 6,
    "samples": 5,
    "sample_length": 12,
    "keep_best": True,
    "eval_every": 2,
    "router_every": 2,
}


@pytest.fixture(scope="module")
def tuned(texts, base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tuned") / "run"
    config = tuning(texts, base, **GENERATION)
    assert train.run(config, folder) == 0
    return config, folder


class TestBase:
    def test_it_learns(self, base):
        perplexity = logged(base, "dev/perplexity")
        assert perplexity[0] == pytest.approx(300, rel=0.3)  # about the vocabulary
        assert result_of(base)["metrics"]["perplexity"] < 0.3 * perplexity[0]

    def test_fields_of_the_result(self, base, texts):
        result = result_of(base)
        assert (result["form"], result["experts"], result["mask"]) == ("dense", 1, None)
        assert (result["metric_name"], result["metric"]) == (
            "perplexity",
            result["metrics"]["perplexity"],
        )
        assert result["task"] == toy_language.TEXTS
        assert result["steps"] == 30
        assert result["tokens"] == 30 * 8 * 16
        assert result["tokens_per_second"] > 0
        assert result["total"] == result["trained"] > 0
        assert result["parameter_bytes"] == 4 * result["total"]
        assert result["optimizer_bytes"] >= 2 * result["parameter_bytes"]
        names = {"loss", "accuracy", "perplexity", "word_perplexity"}
        assert set(result["metrics"]) == names | {f"test_{name}" for name in names}
        assert not (base / "router.csv").exists()
        assert "parameters" in (base / "summary.txt").read_text(encoding="utf-8")

    def test_perplexities_are_those_of_the_counts(self, base, texts):
        result = result_of(base)
        words = data.Tokenizer.from_folder(texts / "words")
        for split, prefix in (("dev", ""), ("test", "test_")):
            whole = (texts / f"{split}.txt").read_text(encoding="utf-8")
            tokens = len(words.encode_plain([whole])[0]) - 1
            metrics = {n: result["metrics"][f"{prefix}{n}"] for n in ("loss", "perplexity")}
            assert metrics["perplexity"] == pytest.approx(math.exp(metrics["loss"]))
            by_word = metrics["loss"] * tokens / len(whole.split())
            found = result["metrics"][f"{prefix}word_perplexity"]
            assert found == pytest.approx(math.exp(by_word), rel=1e-6)
            names = ("dev_examples",) if split == "dev" else ("test_tokens",)
            assert [result[name] for name in names] == [tokens]
        assert result["test_words"] == len((texts / "test.txt").read_text().split())

    def test_no_steps_only_evaluate_and_need_no_training_text(self, base, texts, tmp_path):
        config = toy_language.config(
            texts,
            model_config={},
            tokenizer="",
            model=str(base / "model"),
            steps=0,
            train_split="no",
        )
        assert toy.main(config, str(tmp_path)) == 0
        result, known = result_of(tmp_path), result_of(base)
        assert result["metrics"] == pytest.approx(known["metrics"])
        assert (result["steps"], result["train_examples"]) == (0, 0)
        assert len(logged(tmp_path, "dev/perplexity")) == 1

    def test_the_model_is_the_one_reported(self, base, texts):
        model = io.load_pretrained(base / "model")
        words = data.Tokenizer.from_folder(base / "model")
        assert (model.config.pad_id, model.config.bos_id, model.config.eos_id) == (0, 1, 2)
        ids = np.array(words.encode_plain([(texts / "dev.txt").read_text()])[0])[:17]
        loss = -np.mean(
            np.asarray(jax.nn.log_softmax(model(ids[None, :-1])))[0, np.arange(16), ids[1:]]
        )
        assert loss == pytest.approx(result_of(base)["metrics"]["loss"], rel=0.3)

    def test_a_finished_run_is_known(self, base, texts, monkeypatch, capsys):
        monkeypatch.setattr(tasks.language_modeling.LanguageModeling, "setup", None)
        config = toy_language.config(texts, variant="base", steps=30, save_model=True)
        assert toy.main(config, str(base)) == 0
        assert "after 30 steps, 3,840 tokens" in capsys.readouterr().out


class TestExperts:
    def test_the_start_is_the_dense_model(self, tuned, base):
        found = logged(tuned[1], "dev/loss")
        assert found[0] == pytest.approx(result_of(base)["metrics"]["loss"], rel=1e-5)
        assert list(found) == [0, 2, 4]

    def test_fields_of_the_result(self, tuned):
        _, folder = tuned
        result = result_of(folder)
        assert (result["form"], result["experts"], result["mask"]) == ("mpoe", 4, 0.5)
        assert result["counts"]["central"] > 0
        assert result["best_step"] in (0, 2, 4)
        assert result["metric"] == pytest.approx(min(logged(folder, "dev/perplexity").values()))
        assert set(result["training"]) == {
            *("mask_rate", "router/dropped", "router/entropy", "router/max_load")
        }
        assert 0 <= result["training"]["mask_rate"] <= 1
        assert result["training"]["router/dropped"] == 0
        assert {"bleu2", "bleu4", "sample_bleu2", "self_bleu2"} < set(result["metrics"])
        assert all(math.isfinite(value) for value in result["metrics"].values())

    def test_routers(self, tuned):
        _, folder = tuned
        rows = router_statistics.read(folder)
        places = [(row["step"], row["layer"], row["expert"]) for row in rows]
        layers, steps = ("layer_00", "layer_01"), (0, 2, 4)
        assert places == [(s, layer, e) for s in steps for layer in layers for e in range(4)]
        assert (folder / "router.png").read_bytes().startswith(b"\x89PNG")

    def test_generated_texts(self, tuned, texts):
        _, folder = tuned
        blocks = (folder / "continuations.txt").read_text(encoding="utf-8").split("\n\n")
        assert [len(block.strip().splitlines()) for block in blocks] == [3, 3, 3]
        start, _, truth = (line.removeprefix("> ") for line in blocks[0].strip().splitlines())
        whole = " ".join((texts / "test.txt").read_text(encoding="utf-8").split())
        assert whole.startswith(start)
        assert truth.split()[0] in whole
        samples = (folder / "samples.txt").read_text(encoding="utf-8").split("\n\n")
        assert len(samples) == 5
        assert len({*samples}) > 1

    def test_the_saved_model_has_the_tokenizer_and_one_central_core(self, tuned):
        _, folder = tuned
        model = io.load_pretrained(folder / "model")
        assert sum(models.count_parameters(model).values()) == result_of(folder)["total"]
        arrays = models.to_arrays(model)
        assert arrays["layers/0/feed_forward/up/cores/1"].ndim == 4
        assert data.Tokenizer.from_folder(folder / "model").eos_id == model.config.eos_id

    def test_a_run_goes_on_from_it(self, tuned, texts, tmp_path):
        """Experts that are there are known, although the config asks for none."""
        config = toy_language.config(texts, model_config={}, model=str(tuned[1] / "model"), steps=1)
        config.optimizer.learning_rate, config.test_split = 0.0, ""
        assert train.run(config, tmp_path / "run") == 0
        result = result_of(tmp_path / "run")
        assert (result["form"], result["experts"]) == ("mpoe", 4)
        assert result["metric"] == pytest.approx(result_of(tuned[1])["metric"], rel=1e-4)
        assert not [name for name in result["metrics"] if name.startswith("test_")]
        assert {row["step"] for row in router_statistics.read(tmp_path / "run")} == {0, 1}

    # Without this mark: tests/methods/test_router_statistics.py, test_pretrain.py.
    @pytest.mark.slow
    def test_an_interrupted_run_resumes(self, tuned, tmp_path, stopped_at):
        config, straight = tuned
        with stopped_at(3):
            assert toy.main(config, str(tmp_path / "run")) == 0
        assert not (tmp_path / "run" / "result.json").exists()
        assert train.run(config, tmp_path / "run") == 0
        one, other = result_of(straight), result_of(tmp_path / "run")
        for name in ("metrics", "training", "best_step"):
            assert one[name] == other[name]
        assert one["fit"]["metrics"]["loss"] == other["fit"]["metrics"]["loss"]
        for name in ("router.csv", "samples.txt", "continuations.txt"):
            assert (straight / name).read_bytes() == (tmp_path / "run" / name).read_bytes()
        arrays = [
            models.to_arrays(io.load_pretrained(folder / "model"))
            for folder in (straight, tmp_path / "run")
        ]
        for path, array in arrays[0].items():
            np.testing.assert_array_equal(array, arrays[1][path], err_msg=path)

    @pytest.mark.slow
    def test_a_mesh_of_experts_and_micro_batches(self, texts, base, tmp_path, monkeypatch):
        """All masked, central cores stay; without matplotlib there is no picture."""
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        config = tuning(
            texts, base, mesh={"expert": 2}, grad_accum_steps=2, num_layers_kept=1, steps=2
        )
        config.optimizer.central_mask.rate, config.keep_best = 1.0, True
        assert train.run(config, tmp_path / "run") == 0
        assert not (tmp_path / "run" / "router.png").exists()
        assert (tmp_path / "run" / router_statistics.NAME).exists()
        result = result_of(tmp_path / "run")
        assert result["training"]["mask_rate"] == 1.0
        model = io.load_pretrained(tmp_path / "run" / "model")
        assert model.config.num_layers == 1
        first = loading.first_layers(io.load_pretrained(base / "model"), 1)
        start = models.to_arrays(
            compression.add_experts(
                first, options_lib.read_all(config).model.expert_rules, rngs=nnx.Rngs(0)
            )
        )
        for name, array in models.to_arrays(model).items():
            if "feed_forward/up/cores/" in name:
                moved = np.abs(array - start[name]).max()
                assert moved == 0 if name.endswith("/1") else moved > 0, name


COMMAND = """
import pathlib
from tests.experiments import toy_language

def get_config():
    fields = {"steps": 2000, "checkpoint_every": 1000}
    return toy_language.config(pathlib.Path(TEXTS), **fields)
"""


@pytest.mark.slow
def test_a_signal_to_the_command_saves_and_the_same_command_resumes(texts, tmp_path):
    source, folder = tmp_path / "config.py", tmp_path / "run"
    source.write_text(COMMAND.replace("TEXTS", repr(str(texts))), encoding="utf-8")
    command = [sys.executable, "-m", "experiments.train", f"--config={source}"]
    root = pathlib.Path(__file__).parents[2]
    options = {"cwd": root, "env": os.environ | {"PYTHONPATH": str(root)}, "text": True}
    options |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    first = subprocess.Popen([*command, f"--workdir={folder}"], **options)
    deadline = time.monotonic() + 300
    while not (folder / "metrics.jsonl").exists() or max(logged(folder, "loss"), default=0) < 5:
        assert first.poll() is None, first.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    first.send_signal(signal.SIGTERM)
    _, errors = first.communicate(timeout=300)
    assert first.returncode == 0, errors
    assert not (folder / "result.json").exists()
    with training.Checkpoints(folder / "checkpoints") as saved:
        stopped_at = saved.latest_step()
    assert 5 <= stopped_at < 1000  # not at a step that is saved anyway
    second = subprocess.run([*command, f"--workdir={folder}"], timeout=300, check=False, **options)
    assert second.returncode == 0, second.stderr
    assert result_of(folder)["fit"]["steps_run"] == 2000 - stopped_at
