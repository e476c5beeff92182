"""Folders with a model in another form: what is said, and that its commands work as printed."""

import json
import os
import pathlib
import re
import shlex
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax import nnx, serialization, traverse_util

from mpojax import compression, io, models
from mpojax.io import other_folders
from mpojax.io import weights as safe_weights
from tests.io import helpers, language_helpers
from tests.io.test_adapter_kinds import MODELS, add, moved, outputs

ROOT = pathlib.Path(__file__).parents[2]


def _command(message: str) -> str:
    """Arguments of Python in the command that a message prints."""
    (command,) = re.findall(r"python (-c '.+') writes ", message)
    return command


def follow(message: str, cwd: pathlib.Path) -> None:
    """Runs the command that a message prints, by a shell, word for word."""
    subprocess.run(
        f"{sys.executable} {_command(message)}",
        shell=True,
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        check=True,
        capture_output=True,
    )


def _message(folder) -> str:
    with pytest.raises((ValueError, OSError)) as error:
        io.load_pretrained(folder)
    assert "\n" not in str(error.value)
    return str(error.value)


def _equal(one, two) -> None:
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_array_equal(a, b)


def _transformers(kind: str):
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 40, "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2}
    if kind == "llama":
        config = transformers.LlamaConfig(**sizes, intermediate_size=20, max_position_embeddings=16)
        return transformers.LlamaForCausalLM(config)
    if kind == "t5":
        config = transformers.T5Config(
            vocab_size=40,
            d_model=12,
            d_kv=6,
            d_ff=20,
            num_layers=2,
            num_heads=2,
            feed_forward_proj="gated-gelu",
            tie_word_embeddings=False,
            decoder_start_token_id=0,
        )
        return transformers.T5ForConditionalGeneration(config)
    config = transformers.BertConfig(
        **sizes, intermediate_size=20, max_position_embeddings=16, num_labels=3
    )
    return transformers.BertForSequenceClassification(config)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bert", "llama", "t5"])
def test_the_advice_for_pickles_works_word_for_word(tmp_path, kind):
    """The class keeps its head, the tokenizer comes along; the folder's name needs quotes."""
    torch = pytest.importorskip("torch")
    theirs = _transformers(kind)
    theirs.save_pretrained(tmp_path / "plain")
    folder = tmp_path / "it's a $(model)"
    folder.mkdir()
    torch.save(theirs.state_dict(), folder / "pytorch_model.bin")
    torch.save({}, folder / "optimizer.pt")
    for name, text in (("config.json", None), ("vocab.txt", "[PAD]\nwörd\n"), ("merges.txt", "")):
        text = (tmp_path / "plain" / name).read_text(encoding="utf-8") if text is None else text
        (folder / name).write_text(text, encoding="utf-8")
    message = _message(folder)
    assert "only as pytorch_model.bin, not as model.safetensors" in message
    assert "never unpickles" in message
    follow(message, tmp_path)
    target = tmp_path / f"{folder.name}-safetensors"
    _equal(io.load_pretrained(target), io.load_pretrained(tmp_path / "plain"))
    assert (target / "vocab.txt").read_bytes() == (folder / "vocab.txt").read_bytes()
    assert (target / "merges.txt").is_file()
    assert message.endswith(f"writes {target}; give that.")


@pytest.mark.slow
def test_the_advice_for_one_pickle_works_word_for_word(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({"a": torch.arange(3.0), "b": torch.ones(2, 2).T}, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match="never unpickles") as error:
        io.read_weights(tmp_path / "weights.pt")
    follow(str(error.value), tmp_path)
    assert io.read_weights(tmp_path / "weights.safetensors")["a"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_the_advice_for_flax_works_word_for_word(tmp_path, kind):
    """Names and axes of transformers' Flax models: kernels are transposed, leaves renamed."""
    if kind == "bert":
        content, tensors = helpers.CONFIG, helpers.tensors()
    else:
        content, tensors = language_helpers.checkpoint(language_helpers.GPT2)
    leaves = {1: "scale", 2: "kernel"}
    flat = {}
    for name, tensor in tensors.items():
        *parts, leaf = name.split(".")
        if leaf == "weight":
            is_table = parts[-1].endswith("embeddings") or parts[-1] in ("wte", "wpe")
            leaf = "embedding" if is_table else leaves[tensor.ndim]
        flat[*parts, leaf] = tensor.T if leaf == "kernel" else tensor
    (tmp_path / "config.json").write_text(json.dumps(content), encoding="utf-8")
    (tmp_path / "flax_model.msgpack").write_bytes(
        serialization.msgpack_serialize(traverse_util.unflatten_dict(flat))
    )
    message = _message(tmp_path)
    assert "holds its weights only as flax_model.msgpack" in message
    follow(message, tmp_path)
    helpers.write(tmp_path / "expected", content, tensors)
    _equal(io.load_pretrained(tmp_path), io.load_pretrained(tmp_path / "expected"))


ODD_NAMES = [
    "it's $(touch x)",
    "mod😀l",
    '`touch x` "q" $HOME \\n',
    "ü & ; | !x",
    os.fsdecode(b"\xff"),
]


@pytest.mark.parametrize("name", ODD_NAMES, ids=ascii)
def test_commands_work_for_every_name_of_a_folder(tmp_path, name):
    """The shell runs nothing of it, and Python finds the folder."""
    folder = tmp_path / name
    folder.mkdir()
    code = f"open({other_folders._text(folder / 'made')}, 'x')"
    follow(f"{other_folders._python(code)} writes it.", tmp_path)
    assert [path.name for path in folder.iterdir()] == ["made"]
    assert list(tmp_path.iterdir()) == [folder]
    code.encode()  # it can be printed


@pytest.mark.slow
@pytest.mark.parametrize("name", ODD_NAMES[:3], ids=ascii)
def test_the_advice_for_pickled_adapters_works_word_for_word(tmp_path, name):
    torch = pytest.importorskip("torch")
    folder, base = tmp_path / name, models.build(MODELS["bert"], rngs=nnx.Rngs(1))
    tuned = moved(add(base, (".*/(query|value)", {"rank": 2})))
    io.save_peft(tuned, folder)
    path = folder / "adapter_model.safetensors"
    tensors = {n: torch.tensor(t) for n, t in io.read_weights(path).items()}
    torch.save(tensors, folder / "adapter_model.bin")
    path.unlink()
    with pytest.raises(ValueError, match=r"only as adapter_model\.bin.* never unpickles") as error:
        io.load_peft(base, folder)
    follow(str(error.value), tmp_path)
    np.testing.assert_array_equal(outputs(io.load_peft(base, folder)), outputs(tuned))
    assert list(tmp_path.iterdir()) == [folder]


def test_tensorflow_weights_need_transformers_4(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(helpers.CONFIG), encoding="utf-8")
    (tmp_path / "tf_model.h5").touch()
    message = _message(tmp_path)
    assert "only as tf_model.h5" in message
    assert "pip install 'transformers<5'" in message
    assert f'transformers.BertModel.from_pretrained("{tmp_path}", from_tf=True)' in message


@pytest.mark.parametrize("names", [None, [], 5, ["os; print(1)"], [["BertModel"]]])
def test_only_names_of_classes_go_into_commands(tmp_path, names):
    helpers.write(tmp_path, {"architectures": names})
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(ValueError, match=r"transformers\.AutoModelForPreTraining\.from_pre"):
        safe_weights.find_weight_files(tmp_path)


def test_models_that_are_not_supported_are_not_worth_converting(tmp_path):
    helpers.write(tmp_path, {"model_type": "xlnet", "architectures": ["XLNetModel"]})
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    assert "model_type 'xlnet', which is not supported" in _message(tmp_path)


@pytest.mark.parametrize("kind", ["peft", "own"])
def test_adapters_are_merged_into_a_model_by_the_advice(tmp_path, kind):
    base = helpers.write(tmp_path / "base")
    (base / "vocab.txt").write_text("[PAD]\n", encoding="utf-8")
    model = compression.add_adapters(
        io.load_pretrained(base), [("layers/.*/query", {"rank": 2})], rngs=nnx.Rngs(0)
    )
    arrays = models.to_arrays(model)
    arrays = {n: a + 0.1 if n.endswith("adapter/up") else a for n, a in arrays.items()}
    model = models.from_arrays(model.config, model.shapes, arrays)
    if kind == "peft":
        io.save_peft(model, tmp_path / "adapter", base_model=str(base))
    else:
        io.save_adapter(model, tmp_path / "adapter")
    message = _message(tmp_path / "adapter")
    assert "holds no config.json: it holds an adapter of" in message
    if kind == "own":
        assert "with the folder of its base model for BASE" in message
        message = message.replace('"BASE"', json.dumps(str(base)))
    # Here, not by a shell: names of folders are above.
    exec(shlex.split(_command(message))[-1], {})
    merged = io.load_pretrained(tmp_path / "adapter-merged")
    _equal(merged, compression.merge(model))
    assert (tmp_path / "adapter-merged" / "vocab.txt").is_file()
    # As some trainers leave it, with the configuration of the base.
    helpers.write(tmp_path / "adapter", weights={})
    (tmp_path / "adapter" / "model.safetensors").unlink()
    assert "holds no weights of a model: it holds an adapter of" in _message(tmp_path / "adapter")


def test_the_folder_above_checkpoints_names_the_newest(tmp_path):
    for step in (500, 1500, 1000):
        helpers.write(tmp_path / f"checkpoint-{step}")
    (tmp_path / "checkpoint-2000").mkdir()  # nothing in it yet
    (tmp_path / "logs").mkdir()
    message = _message(tmp_path)
    assert "(checkpoint-1500, checkpoint-1000, checkpoint-500)" in message
    assert f"such as {tmp_path / 'checkpoint-1500'}, the newest" in message
    io.load_pretrained(tmp_path / "checkpoint-1500")
    hub = helpers.write(tmp_path / "models--owner--name" / "snapshots" / "0a1b")
    assert f"such as {hub}, the newest" in _message(hub.parents[1])


def test_other_files_beside_a_configuration(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(helpers.CONFIG), encoding="utf-8")
    assert "holds no weights: expected model.safetensors" in _message(tmp_path)
    (tmp_path / "model-00001-of-00002.safetensors").touch()
    assert "It has model-00001-of-00002.safetensors, of which none is that" in _message(tmp_path)
    (tmp_path / "small.gguf").touch()
    assert "Give the path of small.gguf" in _message(tmp_path)


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 440449768\n"


@pytest.mark.parametrize("name", ["model.safetensors", "model-1.safetensors", "small.gguf"])
def test_pointers_of_git_lfs(tmp_path, name):
    folder = helpers.write(tmp_path / "model")
    (folder / "model.safetensors").unlink()
    (folder / name).write_text(POINTER, encoding="utf-8")
    index = {"weight_map": {"a": "model-1.safetensors"}}
    if name == "model-1.safetensors":
        (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    source = folder / name if name == "small.gguf" else folder
    message = _message(source)
    assert f"{name} is a pointer of Git LFS, not the file itself: run git lfs pull" in message


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"quant_method": "gptq", "bits": 4}, "GPTQ"),
        ({"quant_method": "awq", "bits": 4}, "AWQ"),
        ({"load_in_4bit": True}, "bitsandbytes"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "bitsandbytes"),
        ({"quant_method": "something"}, "'something'"),
        ({}, r"\?"),
    ],
)
def test_quantised_folders_are_named(tmp_path, settings, name):
    content = helpers.CONFIG | {"quantization_config": settings, "_name_or_path": "owner/original"}
    helpers.write(tmp_path / "model", content)
    message = _message(tmp_path / "model")
    assert re.search(rf"model holds weights quantised by {name} \(quantization_config", message)
    assert "16 or 32 bits that it was made of ('owner/original'), or a GGUF file" in message
    assert (".dequantize().save_pretrained(" in message) == (name == "bitsandbytes")
