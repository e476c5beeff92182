"""`experiments.compress` for decoders: methods side by side, resume, errors."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
import tokenizers
from flax import nnx

import mpojax
from configs import compress as compress_config
from experiments import compress, decoders
from mpojax import compression, io, models
from tests.experiments.toy_encoder import WORDS
from tests.models import small_language


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A decoder's folder with a tokenizer of words."""
    folder = tmp_path_factory.mktemp("decoder") / "model"
    io.export_huggingface(
        small_language.dense(dataclasses.replace(small_language.LLAMA, num_layers=1)), folder
    )
    vocabulary = {word: index for index, word in enumerate(WORDS)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    words = json.dumps({"pad_token": "[PAD]", "unk_token": "[UNK]"})
    (folder / "tokenizer_config.json").write_text(words)
    (folder.parent / "text.txt").write_text("good fine film bad poor plot " * 60)
    return folder


@pytest.fixture
def config(model):
    config = compress_config.get_config()
    config.model, config.budgets = str(model), (0.8,)
    config.compare = ("best,svd",)
    config.calibration.update(texts=str(model.parent / "text.txt"), windows=6, length=12)
    config.evaluation.update(texts=config.calibration.texts, window=12, num_windows=3)
    config.heal.update(steps=1, batch_size=8, length=12)  # eight devices
    config.evaluation.speed_rounds, config.sample.prompt = 0, "good film"
    return config


def test_methods_beside_each_other_and_a_stop_in_between(config, tmp_path, capsys, monkeypatch):
    run = tmp_path / "run"
    config.evaluation.speed_rounds = 1
    done = []
    monkeypatch.setattr(io, "save_pretrained", _failing(done, io.save_pretrained, after=2))
    with pytest.raises(KeyboardInterrupt):
        compress.main(config, str(run))
    monkeypatch.undo()
    kept = (run / "compression" / "best_80.json").stat().st_mtime_ns
    assert compress.main(config, str(run)) == 0
    assert (run / "compression" / "best_80.json").stat().st_mtime_ns == kept
    result = json.loads((run / "result.json").read_text())
    assert [row["variant"] for row in result["rows"]] == ["dense", "best_80", "healed_80", "svd_80"]
    dense, best, healed, _ = result["rows"]
    assert min(dense["decode"], best["decode"], best["prefill_ratio"]) > 0
    assert "decode" not in healed
    assert all("sample" in row for row in (dense, best, healed))
    total = result["rows"][0]["parameters"]
    for row in result["rows"][1:]:
        share = float(row["budget"].rstrip(" %")) / 100
        assert row["parameters"] <= share * total
        loaded = io.load_pretrained(run / "models" / row["variant"])
        assert loaded.shapes
    text = capsys.readouterr().out
    assert "two-sided" not in text
    assert "SVD" in text
    assert "perplexity" in text
    assert "Too few tokens to compare models by" in text  # 36 tokens are measured
    assert (run / "plots" / "perplexity.png").is_file()
    assert compress.main(config, str(run)) == 0  # finished: prints its summary


def _failing(done, save, after):
    def saved(*args, **options):
        done.append(args)
        if len(done) > after:
            raise KeyboardInterrupt
        return save(*args, **options)

    return saved


def test_only_the_sizes_that_a_config_names_are_healed(config):
    config.budgets = (0.8, 0.6)
    assert [decoders.heals(config, budget) for budget in config.budgets] == [True, True]
    config.heal.budgets = (0.6,)
    assert [decoders.heals(config, budget) for budget in config.budgets] == [False, True]
    config.heal.update(steps=0, budgets=())
    assert not decoders.heals(config, 0.6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budgets": ()}, "a decoder needs a size"),
        ({"budget_of": "half"}, "config.budget_of='half'"),
        ({"calibration.order": "last"}, "config.calibration.order='last'"),
        ({"calibration.length": 1}, "config.calibration.length=1 must be an integer of at least 2"),
        ({"heal.batch_size": 0}, "config.heal.batch_size=0 must be"),
        ({"heal.batch_size": 9}, "batch_size=9 cannot be split over"),
        ({"bond": 4}, "leave config.bond=4 out"),
        ({"matrices": ("embeddings/word",), "budgets": (0.95,)}, "is for the linear maps"),
        ({"budget": 0.5}, r"config.budget=0.5 and config.budgets=\(0.8,\) exclude each other"),
        ({"budgets": (0.01,)}, r"budget of 0.01 .config.budget_of='model'. .* budget is 0\.\d+\."),
        ({"budgets": (1.5,)}, "a budget of 1.5 is neither a fraction, at most 1, nor a whole"),
        ({"heal.budgets": (0.7,)}, r"config.heal.budgets=\(0.7,\).*one of 0.8"),
        ({"evaluation.speed_budgets": (0.7,)}, r"config.evaluation.speed_budgets=\(0.7,\).*of 0.8"),
        ({"calibration.length": 32, "calibration.texts": "SHORT"}, "fewer than one window"),
        ({"evaluation.window": 32}, "fewer than one window of config.evaluation"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_written(config, tmp_path, changes, message):
    short = tmp_path / "short.txt"
    short.write_text("good film")
    changes = {k: str(short) if v == "SHORT" else v for k, v in changes.items()}
    config.update_from_flattened_dict(changes)
    if "evaluation.window" in changes:
        config.evaluation.texts = str(short)
    with pytest.raises(ValueError, match=message):
        compress.main(config, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_the_smallest_budget_is_told_in_the_units_of_the_config(config):
    model = models.StoredModel.of(io.load_pretrained(config.model))
    for of in ("model", "matrices"):
        config.budget_of, config.budgets = of, (1e-3,)
        with pytest.raises(ValueError, match="smallest feasible budget is") as error:
            decoders.check(config, model, ("svd",))
        least = float(str(error.value).split()[-1].rstrip("."))
        config.budgets = (least,)
        decoders.check(config, model, ("svd",))
        config.budgets = (0.99 * least,)
        with pytest.raises(ValueError, match="smallest feasible"):
            decoders.check(config, model, ("svd",))


def test_budgets_in_words():
    assert [decoders.shown(budget) for budget in (0.6, 1, 134_515_008)] == [
        "60 %",
        "100 %",
        "134,515,008 parameters",
    ]


@pytest.mark.parametrize("order", ["spread", "first", "random"])
def test_windows_of_calibration(config, order):
    config.calibration.update(order=order, windows=16)
    windows = np.arange(100)[:, None]
    found = [
        np.concatenate([batch["input_ids"][:, 0] for batch in batches])
        for batches in decoders._batches(windows, config.calibration)
    ]
    assert [len(rows) for rows in found] == [16, 2]
    assert not set(found[0]) & set(found[1])
    if order == "first":
        assert np.concatenate(found).tolist() == list(range(18))
    if order == "spread":
        assert (found[1].tolist(), np.ptp(np.diff(np.sort(np.concatenate(found))))) == ([0, 99], 1)
    short = decoders._batches(windows[:16], config.calibration)
    assert [len(batches[0]["input_ids"]) for batches in short] == [14, 2]


def test_a_tokenizer_of_another_model_is_refused(config, model, tmp_path):
    other = shutil.copytree(model, tmp_path / "other")
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["plot"] = 77
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    config.model = str(other)
    with pytest.raises(ValueError, match=r"token ids in \d+..77.*this tokenizer does not fit"):
        compress.main(config, str(tmp_path / "run"))
    # Also where no text has a token beyond the model's.
    tokenizer["model"]["vocab"] |= {f"unused{k}": 100 + k for k in range(100)}
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ValueError, match=r"has .* tokens, the model .*: it does not fit"):
        compress.main(config, str(tmp_path / "run"))


def test_a_budget_of_the_matrices(config, tmp_path):
    config.budgets, config.budget_of, config.compare = (0.8,), "matrices", ("svd",)
    assert compress.main(config, str(tmp_path / "run")) == 0
    row = json.loads((tmp_path / "run" / "result.json").read_text())["rows"][1]
    assert 0.6 < row["matrices_ratio"] <= 0.8


ONE_DEVICE = os.environ | {"JAX_NUM_CPU_DEVICES": "1"}


def command(model, folder) -> list[str]:
    """The whole job on few texts, as a user types it."""
    text = model.parent / "text.txt"
    fields = {
        "model": model,
        "budget": 0.8,
        "compare": "layerwise,best",
        "calibration.texts": text,
        "calibration.windows": 6,
        "calibration.length": 12,
        "evaluation.texts": text,
        "evaluation.window": 12,
        "evaluation.num_windows": 3,
        "evaluation.speed_rounds": 0,
        "sample.new_tokens": 0,
        "heal.steps": 3,
        "heal.batch_size": 2,
        "heal.length": 12,
    }
    given = [f"--config.{name}={value}" for name, value in fields.items()]
    start = [sys.executable, "-m", "experiments.compress", "--config=configs/compress.py"]
    return [*start, *given, f"--workdir={folder}"]


def killed(model, folder, pattern: str) -> None:
    """Kills the command, with no chance to clean up, as soon as it has made such a file."""
    quiet = {"stdout": subprocess.DEVNULL, "env": ONE_DEVICE}
    process = subprocess.Popen(command(model, folder), **quiet)
    while process.poll() is None and not any(folder.glob(pattern)):
        time.sleep(0.02)
    assert process.poll() is None, f"ended before {pattern} was there"
    process.kill()
    process.wait()


@pytest.mark.slow
def test_kills_in_calibration_compression_and_healing_change_nothing(model, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    subprocess.run(command(model, whole), check=True, env=ONE_DEVICE)
    # Statistics are there; a layer is finished; the model that is healed is.
    places = ("calibration/*.npy", "compression/*.partial/*.safetensors", "models/best_80/*.json")
    for pattern in places:
        killed(model, cut, pattern)
    subprocess.run(command(model, cut), check=True, env=ONE_DEVICE)
    assert not (cut / "calibration").exists()
    results = [json.loads((run / "result.json").read_text()) for run in (whole, cut)]
    for one, other in zip(*(result["rows"] for result in results), strict=True):
        assert one["perplexity"] == other["perplexity"]
        if one["variant"] != "dense":
            loaded = [io.load_pretrained(run / "models" / one["variant"]) for run in (whole, cut)]
            pair = [models.to_arrays(each) for each in loaded]
            for name, array in pair[0].items():
                np.testing.assert_array_equal(array, pair[1][name])


@pytest.mark.slow
def test_a_mixture_of_experts(config, model, tmp_path):
    folder = tmp_path / "mixture"
    rule = mpojax.Rule(".*feed_forward", number=3, form="switch", router="topk_normalized")
    mixture = compression.add_experts(io.load_pretrained(model), [rule], rngs=nnx.Rngs(0))
    io.save_pretrained(mixture, folder, tokenizer_from=str(model))
    config.model, config.compare, config.heal.steps = str(folder), ("experts,svd",), 0
    assert compress.main(config, str(tmp_path / "run")) == 0
    rows = json.loads((tmp_path / "run" / "result.json").read_text())["rows"]
    assert [row["variant"] for row in rows] == ["dense", "experts_80", "svd_80"]
    assert all(row["parameters"] <= 0.8 * rows[0]["parameters"] for row in rows[1:])
    # All experts are copies of one: a common matrix is exact, and leaves the rest to the others.
    assert abs(rows[1]["perplexity"] - rows[0]["perplexity"]) < rows[0]["perplexity"]
    assert "baseline" in (tmp_path / "run" / "report.md").read_text()
    assert "experts, 80 %" in compress.plan(config)
