"""A model's name means the same in every field of every config."""

import pytest

from configs import compress as compress_config
from configs.mpobert import pretraining as pretraining_config
from configs.mpoe import base as language_config
from configs.mpop import base as tuning_config
from configs.opdf import base as distillation_config
from experiments import compress, runs, sources, tasks
from experiments.tasks import loading
from mpojax import data, io
from mpojax.methods import options as options_lib
from tests.io import gguf_helpers


def _distillation(config):
    config.model = "owner/model"
    method, options = runs.read(config)[1:]
    method.for_task(options)


def _tokenizer(config):
    loading.tokenizer(options_lib.read_all(config).model)


def _weights(config):
    loading.source(options_lib.read_all(config).model)


# Field of a config: (the config, what reads the field).
FIELDS = {
    "compress model": (compress_config, "model", lambda c: compress.main(c, "run")),
    "finetune model": (tuning_config, "model", _tokenizer),
    "finetune init_checkpoint": (tuning_config, "init_checkpoint", _weights),
    "distill teacher": (distillation_config, "teacher", _distillation),
    "pretrain start.teacher": (
        pretraining_config,
        "start.teacher",
        lambda c: tasks.read(c).plan(None),
    ),
    "language_model model": (language_config, "model", _tokenizer),
    "language_model tokenizer": (language_config, "tokenizer", _tokenizer),
}


@pytest.mark.parametrize(("module", "field", "read"), FIELDS.values(), ids=FIELDS)
@pytest.mark.parametrize("name", ["owner/name", "package:no_such/model", "~/no.gguf", "/no/folder"])
def test_every_field_that_names_a_model(tmp_path, monkeypatch, module, field, read, name):
    """All of them ask the same function, which is told their option."""
    asked = []

    def locate(source, option):
        asked.append((source, option))
        raise ConnectionError("no network")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(io, "locate", locate)
    config = module.get_config()
    if field == "start.teacher":
        config.start.kind = "teacher"
    with config.unlocked():
        config.update_from_flattened_dict({field: name})
    with pytest.raises(ConnectionError):
        read(config)
    assert asked == [(name, f"--config.{field}")]
    assert not (tmp_path / "run").exists()


def test_an_empty_name_says_which_field():
    with pytest.raises(ValueError, match=r"config.teacher is empty: pass --config.teacher=FOLDER"):
        sources.locate("", "config.teacher")


@pytest.mark.parametrize("form", ["file", "folder", "package", "home"])
def test_gguf_models_are_one_model_in_every_form(tmp_path, monkeypatch, form):
    """The tokenizer comes out of the file."""
    folder = tmp_path / "carrier" / "model"
    folder.mkdir(parents=True)
    gguf_helpers.write_with_tokenizer(folder / "small.gguf")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    name = {
        "file": str(folder / "small.gguf"),
        "folder": str(folder),
        "package": "package:carrier/model/small.gguf",
        "home": "~/carrier/model/small.gguf",
    }[form]
    source = sources.locate(name)
    assert source == str(folder / "small.gguf")
    tokenizer, written = sources.load_tokenizer(source)
    assert isinstance(tokenizer, data.Tokenizer)
    assert data.Tokenizer.from_folder(written).vocabulary() == tokenizer.vocabulary()
