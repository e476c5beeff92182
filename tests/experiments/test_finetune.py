"""Fine-tuning runs from end to end, on a checkpoint of toy size."""

import contextlib
import csv
import dataclasses
import io as io_lib
import json
import pathlib
import re

import numpy as np
import pytest
from flax import nnx

from configs.mpop import base
from experiments import train
from experiments.render import runs
from experiments.tasks import classification
from mpojax import data, io, models
from mpojax.methods import options as options_lib
from tests.experiments import toy, toy_encoder
from tests.experiments.toy import result_of
from tests.experiments.toy_encoder import SETTINGS

MATRICES = (".*/(query|up|down)", "embeddings/word")


def make_config(checkpoint, texts):
    config = toy_encoder.config(base.get_config(), checkpoint, texts)
    config.steps, config.checkpoint_every = 4, 0
    config.optimizer.role_learning_rates = {"auxiliary": 1e-2}
    return config


@pytest.fixture
def config(checkpoint, texts):
    return make_config(checkpoint, texts)


@pytest.fixture(scope="module")
def tuned(checkpoint, texts, tmp_path_factory):
    """The finished run of `config`, with its model."""
    config = make_config(checkpoint, texts)
    config.save_model = True
    folder = tmp_path_factory.mktemp("tuned") / "run"
    assert train.run(config, folder) == 0
    return folder


@pytest.fixture(scope="module")
def learnt(checkpoint, texts, tmp_path_factory):
    """(config, folder, what it prints) of a run that learns its task."""
    config = make_config(checkpoint, texts)
    config.variant, config.steps = "dense", 40
    config.save_model = True
    folder = tmp_path_factory.mktemp("learnt") / "run"
    with contextlib.redirect_stdout(io_lib.StringIO()) as printed:
        assert toy.main(config, str(folder)) == 0
    return config, folder, printed.getvalue()


def tuned_options(checkpoint):
    return options_lib.read_all({"init_checkpoint": str(checkpoint), "steps": 4})


def test_a_dense_run(learnt):
    config, folder, printed = learnt
    result = result_of(folder)
    assert result["metric_name"] == "accuracy"
    assert result["metric"] == result["metrics"]["accuracy"] == 1.0
    assert result["trained"] == result["total"]
    assert (result["steps"], result["train_examples"], result["dev_examples"]) == (40, 48, 12)
    assert "accuracy 1.0000 on 12 examples" in printed
    assert not (folder / "checkpoints").exists()
    assert train.run(config, folder) == 0  # finished: nothing is done again


def test_pairs_need_two_token_types_or_zeros(config, texts, tmp_path):
    """The message of a model with one token type says what to write, and that works."""
    settings = dataclasses.replace(SETTINGS, token_types=1)
    folder = toy_encoder.write_checkpoint(tmp_path / "model", settings)
    rows = ["good\tfine\t1", "bad\tplot\t0"] * 8
    (tmp_path / "pairs.tsv").write_text("\n".join(["a\tb\tlabel", *rows]) + "\n")
    config.model, config.data_dir, config.steps = str(folder), str(tmp_path), 1
    config.task = "file:train=pairs.tsv,dev=pairs.tsv;text=a;pair=b"
    with pytest.raises(
        ValueError, match=r"token types 0 to 1, .*of 1 \(type_vocab_size=1\)"
    ) as error:
        train.run(config, tmp_path / "refused")
    path, advice = re.search(r"say so in (\S+): (.*)\.$", str(error.value)).groups()
    pathlib.Path(path).write_text("{" + advice + "}", encoding="utf-8")
    assert train.run(config, tmp_path / "run") == 0
    assert 0.0 <= result_of(tmp_path / "run")["metric"] <= 1.0


def test_no_steps_only_evaluate(config, checkpoint, tmp_path):
    config.save_model, config.keep_best, config.steps = True, True, 0
    config.optimizer.warmup_steps = 2  # of a training that does not take place
    assert train.run(config, tmp_path) == 0
    result = result_of(tmp_path)
    assert set(result["metrics"]) == {"accuracy"}
    assert (result["steps"], result["best_step"], result["fit"]["traces"]) == (0, 0, 0)
    assert (result["squeeze"], result["shots"]) == (None, 0)
    given = models.to_arrays(io.load_pretrained(checkpoint))
    saved = models.to_arrays(io.load_pretrained(tmp_path / "model"))
    assert all(np.array_equal(saved[path], array) for path, array in given.items() if path in saved)
    assert len(set(saved) & set(given)) > 10


def test_no_steps_keep_the_head_of_the_model(config, learnt, tmp_path, caplog):
    config.model, config.steps = str(learnt[1] / "model"), 0
    for seed in (0, 3):
        config.seed = seed
        assert train.run(config, tmp_path / f"seed{seed}") == 0
        assert result_of(tmp_path / f"seed{seed}")["metrics"] == {"accuracy": 1.0}
    assert "made anew" not in caplog.text
    config.task = f"{config.task};labels=good,bad"
    assert train.run(config, tmp_path / "other") == 0
    assert "(but one for bad, good): it is made anew, and what is measured" in caplog.text


def test_a_head_without_names_says_how_it_is_taken(checkpoint, caplog):
    model = models.with_head(io.load_pretrained(checkpoint), 2, pooling="mean", rngs=nnx.Rngs(0))
    options = tuned_options(checkpoint)
    task = data.TextTask("mine", {}, ("no", "yes"))
    assert classification.tuned_head(options, model, task, "classifier") == (model, True)
    assert "have no names: taken for ['no', 'yes']" in caplog.text
    wider = data.TextTask("mine", {}, ("no", "yes", "maybe"))
    assert classification.tuned_head(options, model, wider, "classifier") == (model, False)
    assert "has no head for mine, whose classes are no, yes, maybe" in caplog.text


def loss_of(folder):
    return result_of(folder)["fit"]["metrics"]["loss"]


# Of models: tests/models; by a config: below.
@pytest.mark.slow
def test_recomputed_layers_change_nothing(config, tuned, tmp_path):
    config.remat = True
    assert train.run(config, tmp_path) == 0
    np.testing.assert_allclose(loss_of(tmp_path), loss_of(tuned), rtol=1e-5)


def test_half_precision_with_recomputed_layers_changes_little(config, tuned, tmp_path):
    """The saved parameters stay float32."""
    config.update({"save_model": True, "remat": True, "dtype": "bfloat16"})
    assert train.run(config, tmp_path) == 0
    np.testing.assert_allclose(loss_of(tmp_path), loss_of(tuned), rtol=0.05)
    assert loss_of(tmp_path) != loss_of(tuned)
    saved = models.to_arrays(io.load_pretrained(tmp_path / "model"))
    assert {array.dtype for array in saved.values()} == {np.dtype(np.float32)}


def test_a_lightweight_run_at_a_budget(config, tmp_path):
    config.matrices, config.budget, config.trainable = MATRICES, 0.8, "lightweight"
    config.save_model = True
    assert train.run(config, tmp_path) == 0
    result = result_of(tmp_path)
    assert result["trained"] < result["total"] <= 0.8 * dense_total()
    assert 0 < result["relative_error"] < 1
    saved = io.load_pretrained(tmp_path / "model")
    assert result["label_names"] == list(saved.config.label_names) == ["bad", "good"]
    assert sum(models.count_parameters(saved).values()) == result["total"]
    with open(tmp_path / "compression.csv", encoding="utf-8") as file:
        assert {row["path"] for row in csv.DictReader(file)} >= {"layers/0/feed_forward/up"}


def dense_total():
    return sum(int(np.prod(s)) for s in models.array_shapes(SETTINGS).values()) + 16 * 2 + 2


@pytest.mark.slow
def test_a_squeezed_run(config, tmp_path):
    config.matrices, config.trainable, config.variant = MATRICES, "lightweight", "mpop"
    config.held_out_examples = 16
    config.steps = 2
    config.method = "squeezing"
    config.squeeze = {
        "steps": 1,
        "max_phases": 1,
        "max_metric_drop": 1.0,
        "multiple": 2,
        "factor": 0.5,
    }
    assert train.run(config, tmp_path) == 0
    result = result_of(tmp_path)
    phases = result["squeeze"]["phases"]
    assert len(phases) == 2
    assert result["total"] == phases[-1]["parameters"] < phases[0]["parameters"]
    assert result["train_examples"] == 32
    assert result["steps"] == 3
    with open(tmp_path / "trajectory.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["parameters"]) for row in rows] == [p["parameters"] for p in phases]
    assert "feed_forward" in (tmp_path / "trajectory.md").read_text(encoding="utf-8")
    assert (tmp_path / "trajectory.png").stat().st_size > 10_000


@pytest.mark.slow
def test_a_data_aware_run_with_searched_factors(config, tmp_path):
    config.matrices, config.budget, config.trainable = MATRICES[:1], 0.85, "lightweight"
    config.settings = {"data_aware": True, "search": True}
    config.calibration_examples, config.allocation = 16, "first_order"
    config.steps = 1
    assert train.run(config, tmp_path) == 0
    assert result_of(tmp_path)["total"] <= 0.85 * dense_total()


def test_the_best_development_state_is_reported(config, tmp_path):
    config.keep_best, config.eval_every = True, 1
    assert train.run(config, tmp_path) == 0
    result = result_of(tmp_path)
    lines = (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    seen = [m["dev/accuracy"] for m in map(json.loads, lines) if "dev/accuracy" in m]
    assert result["metric"] == max(seen)
    assert 1 <= result["best_step"] <= 4


def test_last_layers_train_from_a_model_tuned_before(config, tuned, tmp_path):
    config.save_model = True
    config.init_checkpoint, config.trainable = str(tuned / "model"), "last_1"
    assert train.run(config, tmp_path) == 0
    first, second = (models.to_arrays(io.load_pretrained(f / "model")) for f in (tuned, tmp_path))
    changed = {path for path in first if not np.array_equal(first[path], second[path])}
    assert not any(path.startswith("layers/0/") for path in changed)
    assert any(path.startswith("layers/1/") for path in changed)
    assert "head/kernel" in changed


@pytest.mark.parametrize(
    ("known", "wanted", "same"),
    [
        ((), ("a", "b"), True),  # a model saved without the names
        (("0", "1"), ("no", "yes"), True),
        (("NO", "YES"), ("no", "yes"), True),
        (("yes", "no"), ("no", "yes"), False),
        (("bug", "feature"), ("no", "yes"), False),
    ],
)
def test_a_head_of_other_classes_does_not_go_on(checkpoint, known, wanted, same):
    model = models.with_head(
        io.load_pretrained(checkpoint), 2, pooling="mean", label_names=known, rngs=nnx.Rngs(0)
    )
    options = tuned_options(checkpoint)
    task = data.TextTask("mine", {}, wanted)
    assert classification.tuned_head(options, model, task, "classifier") == (model, same)


def test_an_interrupted_run_resumes_with_the_same_data(config, tuned, texts, tmp_path, stopped_at):
    with stopped_at(2):
        assert train.run(config, tmp_path / "stopped") == 1
    assert not (tmp_path / "stopped" / "result.json").exists()
    file = texts / "train.tsv"
    content = file.read_text(encoding="utf-8")
    file.write_text(content + "good plot\tgood\n", encoding="utf-8")
    with pytest.raises(
        ValueError, match=r"other data.*train \(48 examples then, 49 examples now\)"
    ):
        train.run(config, tmp_path / "stopped")
    file.write_text(content, encoding="utf-8")
    assert train.run(config, tmp_path / "stopped") == 0
    straight, resumed = result_of(tuned), result_of(tmp_path / "stopped")
    assert straight["metrics"] == resumed["metrics"]
    assert straight["fit"]["metrics"]["loss"] == resumed["fit"]["metrics"]["loss"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trainable": "some"}, "unknown trainable set"),
        ({"squeeze": {"steps": 3}, "method": "tuning"}, "set config.method='squeezing', or leave"),
        ({"method": "squeezin"}, "must be one of tuning, .* did you mean 'squeezing'\\?$"),
        ({"method": "no_such_module:Mine"}, "cannot be imported: No module named"),
        ({"squeeze": {"stepz": 3}}, "config.squeeze: unknown 'stepz', did you mean 'steps'"),
        ({"squeeze": {"gap": 0.1}}, r"config.squeeze.gap is called config.squeeze.max_metric_drop"),
        ({"start_from": "runs/a"}, "config.start_from is called config.init_checkpoint now"),
        ({"squeeze": {"steps": 3}}, "needs a model in MPO form"),
        ({"squeeze": {"steps": 3}, "matrices": ("pooler",), "keep_best": True}, "keep_best"),
        ({"squeeze": {"steps": 3}, "matrices": ("pooler",), "trainable": "last_1"}, "squeezed"),
        ({"steps": -1}, "config.steps=-1"),
        ({"steps": 0, "squeeze": {"steps": 3}, "matrices": ("pooler",)}, "config.steps=0 only"),
        ({"task": "imdb"}, "unknown task 'imdb'"),
        ({"matrices": ("no_such",)}, "matches no matrix"),
        ({"budget": 0.5}, "config.budget=0.5 has no matrices"),
        ({"matrices": ("pooler",), "budget": 0.5, "bond": 4}, "exclude each other"),
        ({"matrices": ("pooler",), "settings": {"data_aware": True}}, "calibration_examples"),
        ({"matrices": ("pooler",), "settings": {"bond": 0}}, "bond=0"),
        ({"rules": (("pooler", {}),), "matrices": ("pooler",)}, "takes the place"),
        ({"matrices": ("pooler",), "allocation": "best"}, "config.allocation='best'"),
        ({"architecture": "gpt-5"}, "config.architecture"),
    ],
)
def test_a_bad_config_leaves_nothing_behind(config, tmp_path, changes, message):
    config.method = "squeezing" if "squeeze" in changes else "tuning"
    for name, value in changes.items():
        config[name] = value
    with pytest.raises(ValueError, match=message):
        train.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_trajectory_with_a_phase_taken_back_can_be_drawn(tmp_path):
    cut = {"group": "a", "bond": None, "rung": 4, "cost": 0.1, "saved": 10}
    phase = {"cuts": [cut], "bonds": {"a": [4, 4]}, "trained": 1, "compilations": 1, "drop": 0.0}
    phases = [
        phase | {"phase": i, "parameters": 100 - i, "metric": 0.9 - i, "accepted": not i, "step": i}
        for i in range(2)
    ]
    runs.write_trajectory(tmp_path, phases, "accuracy")
    assert "| no |" in (tmp_path / "trajectory.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("metric", "label", "shown"),
    [
        ("held-out accuracy", "held-out accuracy, %", 90),
        ("perplexity", "development perplexity per token", 0.9),
    ],
)
def test_a_trajectory_has_the_unit_of_its_metric(metric, label, shown):
    row = {"phase": 0, "parameters": 9, metric: "0.9000", "accepted": "yes", "bonds a": "2-2"}
    panel = runs.draw_trajectory([row], metric).axes[0]
    assert panel.get_ylabel() == label
    assert panel.lines[0].get_ydata() == [shown]


def test_a_regression_run(config, texts, tmp_path):
    lines = ["text\tlabel", *["good fine film\t1.5", "bad poor plot\t-0.5"] * 8]
    (texts / "scores.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    config.task = "file:train=scores.tsv;dev=train;kind=regression"
    config.steps = 2
    assert train.run(config, tmp_path) == 0
    result = result_of(tmp_path)
    assert (result["metric_name"], result["label_names"]) == ("spearman", [])
    assert set(result["metrics"]) == {"spearman", "pearson"}


def test_a_run_that_answers_questions(config, tmp_path):
    context = "good film fine plot"
    paragraph = {
        "context": context,
        "qas": [
            {
                "id": f"q{i}",
                "question": "bad film",
                "answers": [{"text": "fine", "answer_start": 10}],
            }
            for i in range(32)
        ],
    }
    content = {"version": "1.1", "data": [{"title": "t", "paragraphs": [paragraph]}]}
    for name in ("train", "dev"):
        (tmp_path / f"{name}-v1.1.json").write_text(json.dumps(content), encoding="utf-8")
    config.task, config.data_dir = "squad", str(tmp_path)
    config.max_length, config.lengths, config.pooling, config.steps = 12, (12,), "", 40
    config.checkpoint_every = 0
    assert train.run(config, tmp_path / "run") == 0
    result = result_of(tmp_path / "run")
    assert result["metrics"] == {"f1": 1.0, "exact_match": 1.0}
    assert result["metric_name"] == "f1"
    # Another right answer of the development split changes no token, but what is scored.
    (tmp_path / "run" / "result.json").unlink()
    paragraph["qas"][-1]["answers"].append({"text": "film", "answer_start": 5})
    (tmp_path / "dev-v1.1.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ValueError, match=r"began: dev \(32 examples then, 32 examples now\)"):
        train.run(config, tmp_path / "run")
