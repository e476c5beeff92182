"""Folders: save, load, export; and every folder that is not one."""

import dataclasses
import json
import os
import pathlib
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from mpojax import compression, files, io, models
from mpojax.io import sources, weights
from tests.io import helpers

IDS = jnp.asarray([[1, 5, 9, 2], [7, 0, 0, 0]])
RULES = [
    (".*/(query|up)", {"bond": 4}),
    ("embeddings/word", {"rank": 3}),
    ("layers/1/attention/out", {"cores": 3}),
]


@pytest.fixture(scope="module")
def small():
    return compression.compress(helpers.model(), RULES)[0]


def _equal(one, two):
    assert one.config == two.config
    assert one.shapes == two.shapes
    assert jax.tree.structure(one) == jax.tree.structure(two)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_hugging_face_folder_loads(tmp_path):
    model = io.load_pretrained(helpers.write(tmp_path))
    assert isinstance(model, models.Encoder)
    expected = helpers.arrays()
    for name, array in models.to_arrays(model).items():
        np.testing.assert_array_equal(array, expected[name])


def test_half_precision_files_load_as_float32(tmp_path):
    weights = {name: t.astype(np.float16) for name, t in helpers.tensors().items()}
    model = io.load_pretrained(helpers.write(tmp_path, weights=weights))
    assert {leaf.dtype.name for leaf in jax.tree.leaves(model)} == {"float32"}
    name = "layers/0/attention/query/kernel"
    expected = helpers.arrays()[name].astype(np.float16)
    np.testing.assert_array_equal(models.to_arrays(model)[name], expected)


def test_save_and_load_is_the_same_model(small, tmp_path):
    io.save_pretrained(small, tmp_path / "model")
    _equal(io.load_pretrained(str(tmp_path / "model")), small)
    content = json.loads((tmp_path / "model" / "config.json").read_text(encoding="utf-8"))
    assert content["mpojax"]["format_version"] == 10
    names = set(safetensors.numpy.load_file(tmp_path / "model" / "model.safetensors"))
    assert names == set(models.to_arrays(small))
    size = (tmp_path / "model" / "model.safetensors").stat().st_size
    numbers = sum(models.count_parameters(small).values())
    assert 4 * numbers < size < 4 * numbers + 20_000


def test_classifiers_save_and_load(tmp_path):
    settings = dataclasses.replace(
        helpers.SETTINGS, num_labels=3, pooling="mean", remat=True, dtype="bfloat16"
    )
    model = helpers.model(settings)
    io.save_pretrained(model, tmp_path)
    again = io.load_pretrained(tmp_path)
    assert isinstance(again, models.SequenceClassifier)
    _equal(again, model)


def test_saving_again_replaces_and_is_reproducible(small, tmp_path):
    io.save_pretrained(helpers.model(), tmp_path)
    first = helpers.snapshot(tmp_path)
    io.save_pretrained(small, tmp_path)
    assert helpers.snapshot(tmp_path) != first
    _equal(io.load_pretrained(tmp_path), small)
    io.save_pretrained(helpers.model(), tmp_path)
    assert helpers.snapshot(tmp_path) == first


def test_export_and_import_keep_every_number(tmp_path):
    dense = io.load_pretrained(helpers.write(tmp_path / "source"))
    io.export_huggingface(dense, tmp_path / "export")
    _, tensors = None, safetensors.numpy.load_file(tmp_path / "export" / "model.safetensors")
    expected = helpers.tensors()
    assert set(tensors) == set(expected)
    for name, tensor in expected.items():
        np.testing.assert_array_equal(tensors[name], tensor)
    again = io.load_pretrained(tmp_path / "export")
    np.testing.assert_array_equal(again(IDS), dense(IDS))


def test_export_copies_tokenizer_files(tmp_path):
    source = helpers.write(tmp_path / "source")
    (source / "vocab.txt").write_text("[PAD]\n", encoding="utf-8")
    (source / "tokenizer.json").write_bytes(b"{}")
    dense = io.load_pretrained(source)
    io.export_huggingface(dense, tmp_path / "export", tokenizer_from=source)
    names = {"config.json", "model.safetensors", "vocab.txt", "tokenizer.json"}
    assert set(helpers.snapshot(tmp_path / "export")) == names
    assert (tmp_path / "export" / "vocab.txt").read_text(encoding="utf-8") == "[PAD]\n"
    with pytest.raises(FileNotFoundError, match=r"tokenizer_from=.*holds none of tokenizer\.json"):
        io.export_huggingface(dense, tmp_path / "other", tokenizer_from=tmp_path)
    assert not (tmp_path / "other").exists()


def test_tokenizer_files_of_an_earlier_save_are_replaced(tmp_path):
    """Both kinds together would be read as one tokenizer that neither is."""
    names = {"old": ["vocab.txt", "special_tokens_map.json"], "new": ["vocab.json"]}
    for name, written in names.items():
        (tmp_path / name).mkdir()
        for file in written:
            (tmp_path / name / file).write_text("{}")
        settings = {"tokenizer_class": "BertTokenizer" if name == "old" else "GPT2Tokenizer"}
        (tmp_path / name / "tokenizer_config.json").write_text(json.dumps(settings))
        io.save_pretrained(helpers.model(), tmp_path / "saved", tokenizer_from=tmp_path / name)
    found = {path.name for path in (tmp_path / "saved").iterdir()}
    assert found == {"config.json", "model.safetensors", "vocab.json", "tokenizer_config.json"}


def test_tokenizer_files_keep_their_class(tmp_path):
    """Which config.json of the source tells; a BERT model's tokenizer is BERT's anyway."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "config.json").write_text('{"model_type": "qwen2"}')
    (source / "vocab.json").write_text("{}")
    io.save_pretrained(helpers.model(), tmp_path / "saved", tokenizer_from=source)
    io.export_huggingface(helpers.model(), tmp_path / "export", tokenizer_from=source)
    for name in ("saved", "export"):
        written = (tmp_path / name / "tokenizer_config.json").read_text(encoding="utf-8")
        assert json.loads(written) == {"tokenizer_class": "Qwen2Tokenizer"}
    (source / "config.json").write_text('{"model_type": "openai-gpt"}')
    with pytest.raises(ValueError, match=r"names no class of its tokenizer"):
        io.save_pretrained(helpers.model(), tmp_path / "other", tokenizer_from=source)
    assert not (tmp_path / "other").exists()


def test_export_of_chains_says_merge_first(small, tmp_path):
    with pytest.raises(
        ValueError, match=r"matrices in MPO form .*export_huggingface\(merge\(model"
    ):
        io.export_huggingface(small, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("write", [io.save_pretrained, io.export_huggingface])
def test_foreign_folders_are_left_alone(tmp_path, write):
    model = helpers.model()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "diary.txt").write_text("mine", encoding="utf-8")
    checkpoint = helpers.write(tmp_path / "checkpoint")
    for folder in (tmp_path / "notes", checkpoint):
        before = helpers.snapshot(folder)
        with pytest.raises(FileExistsError, match=r"not a model saved by mpojax.*Nothing has been"):
            write(model, folder)
        assert helpers.snapshot(folder) == before
    (tmp_path / "empty").mkdir()
    write(model, tmp_path / "empty")
    write(model, tmp_path / "empty")


def test_a_failed_save_keeps_the_old_model(small, tmp_path, monkeypatch):
    io.save_pretrained(small, tmp_path)
    before = helpers.snapshot(tmp_path)

    def full_disk(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(weights, "_write_weights", full_disk)
    with pytest.raises(OSError, match=r"the disk is full.*\(nothing has been changed\)"):
        io.save_pretrained(helpers.model(), tmp_path)
    assert helpers.snapshot(tmp_path) == before


@pytest.mark.parametrize("write", [io.save_pretrained, io.export_huggingface])
@pytest.mark.parametrize("killed_at", ["model.safetensors", "config.json"])
def test_a_save_that_was_killed_can_be_done_again(tmp_path, monkeypatch, write, killed_at):
    """No clean-up runs after a kill: temporary files stay, renames stop anywhere."""
    model, folder = helpers.model(), tmp_path / "model"
    replace = os.replace

    def kill(source, target):
        if target.name == killed_at:
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", kill)
        patch.setattr(shutil, "rmtree", lambda *args, **kwargs: None)
        with pytest.raises(KeyboardInterrupt):
            write(model, folder)
    assert any(files.is_leftover(path) for path in folder.iterdir())
    with pytest.raises(FileNotFoundError, match=r"holds no config\.json"):
        io.load_pretrained(folder)
    write(model, folder)
    assert sorted(helpers.snapshot(folder)) == ["config.json", "model.safetensors"]
    again = models.to_arrays(io.load_pretrained(folder))
    np.testing.assert_array_equal(again["pooler/bias"], helpers.arrays()["pooler/bias"])


def test_our_configuration_without_weights_is_overwritten(small, tmp_path):
    io.save_pretrained(small, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    io.save_pretrained(small, tmp_path)
    _equal(io.load_pretrained(tmp_path), small)


def test_models_with_nan_are_not_saved(tmp_path):
    arrays = helpers.arrays()
    arrays["pooler/bias"][0] = np.nan
    model = models.from_arrays(helpers.SETTINGS, {}, arrays)
    with pytest.raises(ValueError, match=r"the model holds weights that are NaN.*pooler/bias"):
        io.save_pretrained(model, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_checkpoints_with_nan_are_not_loaded(tmp_path):
    weights = helpers.tensors()
    weights["pooler.dense.bias"][0] = np.inf
    message = r"NaN or infinite: pooler.dense.bias \(1 of 12 elements\)"
    with pytest.raises(ValueError, match=message):
        io.load_pretrained(helpers.write(tmp_path, weights=weights))


def test_folders_that_are_none(tmp_path):
    (tmp_path / "empty").mkdir()
    helpers.write(tmp_path / "list", content=[])
    helpers.write(tmp_path / "broken")
    (tmp_path / "broken" / "config.json").write_text("{", encoding="utf-8")
    helpers.write(tmp_path / "unknown", content={"model_type": "xlnet"})
    cases = [
        ("missing", FileNotFoundError, "there is no folder .*missing, and it does not look like a"),
        ("list/config.json", NotADirectoryError, "is a file; give the folder"),
        ("empty", FileNotFoundError, r"holds no config\.json"),
        ("broken", ValueError, r"config\.json is not valid JSON"),
        ("list", ValueError, "must hold a JSON object, not list"),
        ("unknown", ValueError, "model_type 'xlnet'.*supported are bert, "),
    ]
    for name, error, message in cases:
        with pytest.raises(error, match=message):
            io.load_pretrained(tmp_path / name)


def test_damaged_folders_of_ours(small, tmp_path):
    io.save_pretrained(small, tmp_path / "one")
    io.save_pretrained(helpers.model(seed=1), tmp_path / "two")
    good = (tmp_path / "one" / "config.json").read_text(encoding="utf-8")

    def load_with(config: str):
        (tmp_path / "one" / "config.json").write_text(config, encoding="utf-8")
        return io.load_pretrained(tmp_path / "one")

    other = (tmp_path / "two" / "config.json").read_text(encoding="utf-8")
    with pytest.raises(ValueError, match="not from the same save"):
        load_with(other)
    for edit, message in (
        (
            lambda c: c["mpojax"].update(format_version=11),
            "format version 11; this version .* reads 1, 2, 3, 4",
        ),
        (lambda c: c["mpojax"].pop("shapes"), "not a complete mpojax model: 'shapes'"),
        (lambda c: c["mpojax"]["encoder"].update(depth=3), "not a complete mpojax model: .*depth"),
        (lambda c: c["mpojax"]["encoder"].update(num_layers=3), "missing: layers/2/attention"),
    ):
        content = json.loads(good)
        edit(content)
        with pytest.raises(ValueError, match=message):
            load_with(json.dumps(content))
    _equal(load_with(good), small)


def test_hub_ids_need_the_optional_package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match="pip install huggingface_hub"):
        io.load_pretrained("owner/name")


def test_hub_ids_are_fetched(tmp_path, monkeypatch):
    folder = helpers.write(tmp_path / "cache")
    asked = {}

    class Hub:
        @staticmethod
        def snapshot_download(name, allow_patterns):
            asked.update(name=name, patterns=allow_patterns)
            if name == "owner/gone":
                raise RuntimeError("404")
            return str(folder)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", Hub)
    assert isinstance(io.load_pretrained("owner/name"), models.Encoder)
    assert io.local_folder("owner/name") == folder
    assert {"tokenizer.json", "vocab.txt"} <= set(asked["patterns"])
    assert asked["name"] == "owner/name"
    assert not any(pattern.endswith((".bin", ".pt", "*")) for pattern in asked["patterns"])
    with pytest.raises(FileNotFoundError, match="the hub gave no model of that name: 404"):
        io.load_pretrained("owner/gone")


def test_a_folder_of_that_name_comes_before_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    helpers.write(pathlib.Path("owner") / "name")
    assert isinstance(io.load_pretrained("owner/name"), models.Encoder)
    assert sources._HUB_ID.fullmatch("../up") is None
