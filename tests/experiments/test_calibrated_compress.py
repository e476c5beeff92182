"""The compression job with variants that look at activations."""

import json

import pytest
import tokenizers
from flax import nnx

from configs import compress as compress_config
from experiments import compress
from mpojax import io, models
from tests import marks
from tests.experiments.toy_encoder import SETTINGS, WORDS
from tests.models import small_language


@pytest.fixture
def config(tmp_path):
    folder = tmp_path / "checkpoint"
    io.export_huggingface(models.build(SETTINGS, rngs=nnx.Rngs(0)), folder)
    (folder / "vocab.txt").write_text("\n".join(WORDS), encoding="utf-8")
    lines = ["text\tlabel", *["good fine film\tgood", "bad poor plot\tbad"] * 40]
    (tmp_path / "texts.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    config = compress_config.get_config()
    config.model, config.budget = str(folder), 0.8
    config.matrices = (".*/(query|up)",)
    config.compare = ("mpo,svd,svd_aware,searched",)  # as a command line gives it
    config.calibration.task = f"file:train={tmp_path / 'texts.tsv'};dev=train"
    config.calibration.max_length = 8
    return config


def test_variants_by_outputs_stand_beside_the_plain_ones(config, tmp_path):
    assert compress.main(config, str(tmp_path / "run")) == 0
    found = {
        name: json.loads((tmp_path / "run" / "compression" / f"{name}.json").read_text())
        for name in ("mpo", "svd", "svd_aware", "searched")
    }
    assert "output error" in (tmp_path / "run" / "summary.txt").read_text(encoding="utf-8")
    sizes = [entry["parameters"] for entry in found.values()]
    assert max(sizes) == sizes[0] <= 0.8 * found["mpo"]["dense_parameters"]
    for entry in found.values():
        for row in entry["rows"]:
            assert row["output_error"] is not None
            assert row["data_svd_output_error"] <= row["svd_output_error"] + 1e-6
    for row in found["searched"]["rows"]:
        assert row["output_error"] <= row["data_svd_output_error"] + 1e-5


# The methods on encoders: tests/compression/test_choosing.py; in a study: test_decoders.py.
@pytest.mark.slow
def test_methods_of_decoders_take_encoders_too(config, tmp_path):
    config.compare, config.budget_of = ("best,whitened,svd_aware",), "matrices"
    config.variants.svd_aware.same_size_as = "whitened"
    assert compress.main(config, str(tmp_path / "run")) == 0
    found = {
        name: json.loads((tmp_path / "run" / "compression" / f"{name}.json").read_text())
        for name in ("best", "whitened", "svd_aware")
    }
    matched = 2 * (16 * 16 + 16 * 32)  # two layers: query and up
    removed = [record["dense_parameters"] - record["parameters"] for record in found.values()]
    assert min(removed) >= 0.2 * matched
    assert found["best"]["choice"]["chosen"] in found["best"]["choice"]["found"]
    assert all(0 < record["similarity"] <= 1 for record in found.values())
    assert "similarity" in (tmp_path / "run" / "summary.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "bets"}, "best"),
        ({"settings": {"form": "low_rank"}}, "leave settings out"),
        ({"bond": 4}, "leave bond=4 out"),
        ({"budget": None}, "give it a budget"),
    ],
)
def test_a_method_chooses_by_itself(config, tmp_path, changes, message):
    config.variants.best.unlock()
    for name, value in changes.items():
        config.variants.best[name] = value
    config.compare = ("best",)
    with pytest.raises(ValueError, match=message):
        compress.main(config, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_texts_are_asked_for_before_anything_is_written(config, tmp_path):
    config.calibration.task = ""
    with pytest.raises(ValueError, match=r"config.calibration.task"):
        compress.main(config, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


# What a calibration sees of encoder-decoders: tests/compression/test_calibration.py.
@pytest.mark.parametrize("name", marks.slow_but(("gpt2",), ("gpt2", "t5")))
def test_language_models_by_outputs(config, tmp_path, name):
    kinds = {"gpt2": small_language.GPT2, "t5": small_language.T5_GATED}
    io.export_huggingface(small_language.dense(kinds[name]), tmp_path / "model")
    vocabulary = {word: index for index, word in enumerate(WORDS)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "model" / "tokenizer.json"))
    words = json.dumps({"pad_token": "[PAD]", "unk_token": "[UNK]"})
    (tmp_path / "model" / "tokenizer_config.json").write_text(words)
    config.model, config.compare = str(tmp_path / "model"), ("mpo", "svd_aware")
    config.variants.svd_aware.settings = {"form": "low_rank", "data_aware": True, "ridge": 0.1}
    assert compress.main(config, str(tmp_path / "run")) == 0
    record = json.loads((tmp_path / "run" / "compression" / "svd_aware.json").read_text())
    assert all(row["output_error"] is not None for row in record["rows"])
    assert record["relative_output_error"] < record["relative_error"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variants.mpo.allocation": "first_order"}, "has no head for one"),
    ],
)
def test_what_cannot_be_trained_is_said_early(config, tmp_path, changes, message):
    config.variants.mpo.allocation = "error"
    config.update_from_flattened_dict(changes)
    with pytest.raises(ValueError, match=message):
        compress.main(config, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
