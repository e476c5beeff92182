"""Damaged and hostile files of models: each loads, or is one clear error, in bounded time."""

import dataclasses
import json

import hypothesis
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx
from hypothesis import strategies as st

from mpojax import compression, io, models
from mpojax.io.hf import checkpoints
from tests import damaged, marks
from tests.io import helpers, language_helpers
from tests.models import small

ENCODERS = {
    "bert": helpers.SETTINGS,
    "albert": small.ALBERT,
    "distilbert": dataclasses.replace(small.DISTILBERT, pooling="none"),
    "mobilebert": small.MOBILEBERT,
}
CONFIGS = {**ENCODERS, **language_helpers.CONFIGS}
CONFIGS["qwen2"] = language_helpers.VARIANTS["qwen2"]
KEYS = {key for family in checkpoints.FAMILIES.values() for key in family.keys}
KEYS |= {"architectures", "model_type", "id2label", "num_labels", "rope_scaling", "mpojax"}
KEYS |= {"generation_config", "do_sample", "top_k", "num_beams", "torch_dtype"}


def few(count: int):
    """Settings of a property: `count` examples, the same ones in every run."""
    return hypothesis.settings(
        max_examples=count, suppress_health_check=list(hypothesis.HealthCheck)
    )


def arrays_of(config):
    if isinstance(config, models.EncoderConfig):
        return helpers.arrays(config)
    return language_helpers.arrays(config)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("damaged")


def checkpoint(name, folder):
    """(folder, content of config.json) of a family."""
    content, tensors = checkpoints.export_model(CONFIGS[name], arrays_of(CONFIGS[name]))
    target = folder / name
    if not target.exists():
        helpers.write(target, content, tensors)
    return target, json.loads(json.dumps(content))


def load(folder, content):
    (folder / "config.json").write_text(json.dumps(content), encoding="utf-8")
    return damaged.load_or_clear_error(lambda: io.load_pretrained(folder))


def check_config(folder, name, data):
    target, content = checkpoint(name, folder)
    load(target, data.draw(damaged.contents(content, sorted(KEYS))))


# A family of each stack; all of them, and longer, below.
@pytest.mark.parametrize("name", marks.slow_but(("bert", "llama", "t5"), CONFIGS))
@few(12)
@hypothesis.given(data=st.data())
def test_config_json(folder, name, data):
    check_config(folder, name, data)


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
@few(100)
@hypothesis.given(data=st.data())
def test_config_json_at_length(folder, name, data):
    check_config(folder, name, data)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("bert", {"architectures": 1}, "architectures=1 must be a list"),
        ("bert", {"vocab_size": {}}, r"vocab_size=\{\} must be an integer from 1 to"),
        ("bert", {"layer_norm_eps": "abc"}, "layer_norm_eps='abc' must be a finite number"),
        ("bert", {"model_type": ["bert"]}, r"model_type=\['bert'\] must be a text"),
        (
            "bert",
            {"num_hidden_layers": 10**12},
            "layers=1000000000000 must be .* to 10000",
        ),
        (
            "albert",
            {"num_hidden_layers": 10**12},
            "layers=1000000000000 must be an integer",
        ),
        ("llama", {"num_hidden_layers": 9000}, "tensors are too few for 9000 layers"),
        (
            "t5",
            {"num_layers": 10**12},
            "layers=1000000000000 must be an integer from 1 to",
        ),
        ("t5", {"vocab_size": 10**12}, "vocab_size=1000000000000 must be an integer from 1 to"),
        ("gpt2", {"n_embd": damaged.DEEP}, "nested too deeply"),
        ("llama", {"rope_scaling": {"factor": "8"}}, "factor='8' must be a finite number"),
        ("llama", {"eos_token_id": ["2"]}, r"eos_token_id=\['2'\] must be an integer"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, name, changes, message):
    target, content = checkpoint(name, tmp_path)
    (target / "config.json").write_text(json.dumps(content | changes), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        io.load_pretrained(target)


def own_models():
    settings = dataclasses.replace(helpers.SETTINGS, token_types=1)
    encoder = models.from_arrays(settings, {}, helpers.arrays(settings))
    encoder, _ = compression.compress(encoder, [(".*/(query|up)", {"bond": 3})])
    encoder = compression.add_adapters(encoder, [(".*/value", {"rank": 2})], rngs=nnx.Rngs(0))
    decoder = models.from_arrays(
        language_helpers.GPT2, {}, language_helpers.arrays(language_helpers.GPT2)
    )
    rules = [("layers/1/feed_forward", {"number": 2, "form": "mpoe"})]
    t5 = models.from_arrays(language_helpers.T5, {}, language_helpers.arrays(language_helpers.T5))
    return {
        "encoder": encoder,
        "decoder": compression.add_experts(decoder, rules, rngs=nnx.Rngs(0)),
        "encoder_decoder": t5,
    }


@pytest.fixture(scope="module")
def own_folders(tmp_path_factory):
    """{kind: (folder, content of config.json)}."""
    found = {}
    for kind, model in own_models().items():
        target = tmp_path_factory.mktemp(kind)
        io.save_pretrained(model, target)
        found[kind] = target, json.loads((target / "config.json").read_text(encoding="utf-8"))
    return found


def check_own(own_folders, kind, data):
    target, content = own_folders[kind]
    entry = data.draw(damaged.contents(content["mpojax"], ["kind", "config", "encoder", "more"]))
    load(target, content | {"mpojax": entry})


@pytest.mark.parametrize("kind", ["encoder", "decoder", "encoder_decoder"])
@few(20)
@hypothesis.given(data=st.data())
def test_own_config_json(own_folders, kind, data):
    check_own(own_folders, kind, data)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["encoder", "decoder", "encoder_decoder"])
@few(200)
@hypothesis.given(data=st.data())
def test_own_config_json_at_length(own_folders, kind, data):
    check_own(own_folders, kind, data)


def check_weights(folder, data):
    target, _ = checkpoint("bert", folder)
    good = (target / "good").read_bytes() if (target / "good").exists() else None
    if good is None:
        good = (target / "model.safetensors").read_bytes()
        (target / "good").write_bytes(good)
    head = 8 + int.from_bytes(good[:8], "little")
    (target / "model.safetensors").write_bytes(data.draw(damaged.raw(good, head)))
    damaged.load_or_clear_error(lambda: io.load_pretrained(target))


@few(30)
@hypothesis.given(data=st.data())
def test_weights(tmp_path_factory, data):
    check_weights(tmp_path_factory.getbasetemp() / "weights", data)


@pytest.mark.slow
@few(600)
@hypothesis.given(data=st.data())
def test_weights_at_length(tmp_path_factory, data):
    check_weights(tmp_path_factory.getbasetemp() / "weights", data)


def test_long_names_are_cut(tmp_path):
    target = helpers.write(tmp_path, weights={"x" * 30_000: np.zeros(3, np.float32)})
    assert damaged.load_or_clear_error(lambda: io.load_pretrained(target)) is None
    tensors = {f"{i}{'x' * 5000}": np.full(3, np.nan, np.float32) for i in range(40)}
    helpers.write(tmp_path, weights=tensors)
    assert damaged.load_or_clear_error(lambda: io.load_pretrained(target)) is None


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """(folder, content of the index), and a file outside that is no shard."""
    target = tmp_path_factory.mktemp("shards") / "model"
    helpers.write(target)
    tensors = safetensors.numpy.load_file(target / "model.safetensors")
    names = sorted(tensors)
    index = {}
    for number in range(2):
        file = f"model-{number}.safetensors"
        part = {name: tensors[name] for name in names[number::2]}
        safetensors.numpy.save_file(part, target / file)
        index |= dict.fromkeys(part, file)
    (target / "model.safetensors").rename(target.parent / "x")
    return target, {"metadata": {"total_size": 1}, "weight_map": index}


@few(30)
@hypothesis.given(data=st.data())
def test_index_of_shards(shards, data):
    target, content = shards
    names = ["weight_map", "metadata", "more"]
    changed = data.draw(damaged.contents(content, names))
    (target / "model.safetensors.index.json").write_text(json.dumps(changed), encoding="utf-8")
    damaged.load_or_clear_error(lambda: io.load_pretrained(target))


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "..", "a/../../x", ""])
def test_nothing_outside_of_the_folder_is_opened(shards, name):
    target, content = shards
    changed = damaged.replaced(content, ("weight_map", "pooler.dense.bias"), name)
    (target / "model.safetensors.index.json").write_text(json.dumps(changed), encoding="utf-8")
    with pytest.raises((ValueError, OSError), match=r"outside its folder|lacks the shards"):
        io.load_pretrained(target)


def check_gguf(folder, data):
    from tests.io import gguf_helpers

    folder.mkdir(exist_ok=True)
    if not (folder / "good").exists():
        gguf_helpers.write(
            folder / "good", bos_token_id=1, eos_token_id=2, token_list=["a", "b"] * 20
        )
    good = (folder / "good").read_bytes()
    path = folder / "bad.gguf"
    path.write_bytes(data.draw(damaged.raw(good, 3000)))
    damaged.load_or_clear_error(lambda: io.load_pretrained(path))


@few(30)
@hypothesis.given(data=st.data())
def test_gguf(tmp_path_factory, data):
    check_gguf(tmp_path_factory.getbasetemp() / "gguf", data)


@pytest.mark.slow
@few(600)
@hypothesis.given(data=st.data())
def test_gguf_at_length(tmp_path_factory, data):
    check_gguf(tmp_path_factory.getbasetemp() / "gguf", data)


@few(30)
@hypothesis.given(data=st.data())
def test_generation_config_json(folder, data):
    target, content = checkpoint("llama", folder)
    (target / "config.json").write_text(json.dumps(content), encoding="utf-8")
    own = {"eos_token_id": [1, 2], "do_sample": True, "temperature": 0.5, "min_p": 0.1}
    own |= {"top_k": 3, "num_beams": 1, "repetition_penalty": 1.1}
    path = target / "generation_config.json"
    path.write_text(json.dumps(data.draw(damaged.contents(own))), encoding="utf-8")
    damaged.load_or_clear_error(lambda: io.load_pretrained(target))
    path.unlink()
