"""End tokens and sampling defaults of folders and GGUF files; entries that are not supported."""

import json

import pytest

from mpojax import io, models
from mpojax.io import generation_config
from tests.io import language_helpers as helpers

LLAMA = helpers.CONFIGS["llama"]


def _read(tmp_path, config=LLAMA, **content):
    (tmp_path / "generation_config.json").write_text(json.dumps(content), encoding="utf-8")
    return generation_config.read(config, tmp_path)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"do_sample": False, "temperature": 0.6, "top_p": 0.9}, models.Sampling()),
        ({"temperature": 0.6}, models.Sampling()),
        ({"do_sample": True}, models.Sampling(temperature=1.0, top_k=50)),
        ({"do_sample": True, "temperature": 0}, models.Sampling()),
        (
            {"do_sample": True, "temperature": 2, "top_k": 0, "top_p": 0.3},
            models.Sampling(temperature=2.0, top_p=0.3),
        ),
        ({"num_beams": 4}, models.Sampling(beams=4)),
        ({"num_beams": 2, "length_penalty": -1}, models.Sampling(beams=2, length_penalty=-1.0)),
        ({"num_beams": 1, "length_penalty": 2.0, "top_k": None}, models.Sampling()),
        # Outside their ranges they are off: nothing is sampled by compression or tuning.
        ({"do_sample": True, "top_k": -1, "top_p": 0}, models.Sampling(temperature=1.0)),
        ({"do_sample": True, "temperature": -1, "top_k": 50.0}, models.Sampling(1.0, 50)),
    ],
)
def test_sampling(tmp_path, given, expected):
    config = _read(tmp_path, **given)
    assert config.sampling == expected
    written = generation_config.written(config)
    assert {key: written[key] for key in given} == given
    assert generation_config.sampling(written) == expected
    # Without a source, too.
    assert generation_config.sampling(generation_config._entries(expected)) == expected


def test_without_the_file_config_json_says_it(tmp_path):
    content, _ = helpers.checkpoint(LLAMA)
    content |= {"do_sample": True, "top_k": 3}
    config = models.DecoderConfig(
        vocab_size=40,
        hidden_size=12,
        num_layers=1,
        num_heads=1,
        intermediate_size=8,
        source_config=json.dumps(content),
    )
    found = generation_config.read(config, tmp_path)
    assert found.sampling == models.Sampling(temperature=1.0, top_k=3)
    assert _read(tmp_path, config, eos_token_id=[3, 4, -1, 99]).end_ids == (3, 4)
    assert _read(tmp_path, config).sampling == models.Sampling()


def test_tokens_that_the_file_does_not_name_stay_those_of_config_json(tmp_path):
    assert _read(tmp_path, pad_token_id=5).end_ids == LLAMA.end_ids == (2,)
    assert _read(tmp_path, pad_token_id=5).pad_id == 5
    assert _read(tmp_path, helpers.T5, decoder_start_token_id=4).decoder_start_id == 4


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"repetition_penalty": 1.1, "min_length": 0}, "repetition_penalty=1.1"),
        ({"suppress_tokens": [1] * 5000}, "suppress_tokens="),
        ({"num_beams": 2, "do_sample": True}, "do_sample=True"),
        ({"num_beams": 2, "early_stopping": True}, "early_stopping=True"),
    ],
)
def test_what_is_not_supported_is_named(tmp_path, caplog, given, named):
    config = _read(tmp_path, **given)
    assert f"generate does not know {named}" in caplog.text
    assert len(caplog.text) < 500
    assert generation_config.written(config).items() >= given.items()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"eos_token_id": "</s>"}, "eos_token_id='</s>' must be an integer or null or a list"),
        ({"eos_token_id": [[2]]}, "eos_token_id="),
        ({"do_sample": "yes"}, "do_sample='yes' must be true or false"),
        ({"temperature": "-1"}, "temperature='-1' must be a finite number or null"),
        ({"num_beams": 0}, "num_beams=0 must be an integer of at least 1"),
    ],
)
def test_wrong_values_are_named(tmp_path, given, message):
    with pytest.raises(ValueError, match=message):
        _read(tmp_path, **given)


def test_ends_are_tokens():
    config = models.reconfigure(helpers_model(), eos_id=[3]).config
    assert (config.eos_id, config.end_ids) == (3, (3,))
    with pytest.raises(ValueError, match=r"eos_id=99 must be an integer from 0 to 39"):
        models.reconfigure(helpers_model(), eos_id=(3, 99))


def helpers_model():
    return models.from_arrays(LLAMA, {}, helpers.arrays(LLAMA))


def test_folders_of_version_5_load(tmp_path):
    """They know one end token, and no defaults."""
    io.save_pretrained(helpers_model(), tmp_path)
    path = tmp_path / "config.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["mpojax"]["format_version"] = 5
    for name in ("sampling", "source_generation_config"):
        del content["mpojax"]["config"][name]
    path.write_text(json.dumps(content), encoding="utf-8")
    assert io.load_pretrained(tmp_path).config == LLAMA


def test_gguf(tmp_path):
    from tests.io import gguf_helpers

    path = gguf_helpers.write(
        tmp_path / "small.gguf",
        eos_token_id=2,
        eot_token_id=7,
        pad_token_id=3,
        float32=("general.sampling.temp", 0.5),
        int32=("general.sampling.top_k", 20),
    )
    config = io.load_pretrained(path).config
    assert (config.end_ids, config.pad_id) == ((2, 7), 3)
    assert config.sampling == models.Sampling(temperature=0.5, top_k=20)
    io.export_huggingface(io.load_pretrained(path), tmp_path / "exported")
    again = io.load_pretrained(tmp_path / "exported").config
    assert (again.end_ids, again.sampling) == (config.end_ids, config.sampling)
