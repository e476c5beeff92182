"""Healing of compressed decoders: the loss by hand, what is trained, runs that are killed."""

import dataclasses
import json
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mpojax import compression, models, mpo, training
from mpojax.compression.matrices import matrices_of
from mpojax.methods import healing
from mpojax.methods.opdf.distillation import Pair
from tests.models import small_language

ROOT = pathlib.Path(__file__).parents[2]
TOKENS = np.random.default_rng(0).integers(0, 50, 400)
# On one device, for which a step compiles faster.
MESH = training.make_mesh(devices=jax.devices()[:1])
SHORT = {"steps": 12, "batch_size": 4, "length": 8, "learning_rate": 2e-2, "mesh": MESH}


def original():
    rates = dict.fromkeys(("dropout", "embedding_dropout", "attention_dropout"), 0.0)
    config = dataclasses.replace(small_language.LLAMA, num_layers=1, **rates)
    return models.build(config, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def dense():
    return original()


def pivoted(model):
    """All matrices of the layers as pivoted chains."""
    matrices, chains = matrices_of(model), {}
    for path in matrices.sizes:
        if path.startswith("layers/"):
            cores, shape = mpo.pivot(mpo.low_rank(matrices.weights(path), 4))
            types = [np.int32 if core.dtype.kind == "i" else np.float32 for core in cores]
            chains[path] = shape, [c.astype(t) for c, t in zip(cores, types, strict=True)]
    return matrices.with_chains(chains)


@pytest.fixture(scope="module")
def student(dense):
    return pivoted(dense)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("healing")


@pytest.fixture(scope="module")
def healed(dense, student, folder):
    return healing.heal(student, dense, TOKENS, held_out=TOKENS[:64], workdir=folder, **SHORT)


def changed(before, after):
    one, other = models.to_arrays(before), models.to_arrays(after)
    assert one.keys() == other.keys()
    return {name for name in one if not np.array_equal(one[name], other[name])}


def log_softmax(logits):
    logits = np.asarray(logits, np.float64)
    largest = logits.max(-1, keepdims=True)
    return logits - largest - np.log(np.exp(logits - largest).sum(-1, keepdims=True))


@pytest.mark.parametrize("weight", [0.3, 1.0])
def test_the_loss_is_that_of_the_formula(dense, student, weight):
    ids = jnp.asarray(TOKENS[:36].reshape(4, 9), jnp.int32)
    real = np.ones((4, 8), np.float32)
    real[1, 5:] = 0
    batch = {"input_ids": ids[:, :-1], "targets": ids[:, 1:], "target_weights": jnp.asarray(real)}
    loss, metrics = healing.healing_loss(weight)(Pair(student, dense), batch, None)
    log_q, log_p = (log_softmax(model(ids[:, :-1])) for model in (student, dense))
    divergence = labels = 0.0
    for row, position in np.argwhere(real):
        q, p = log_q[row, position], log_p[row, position]
        divergence += sum(np.exp(p[v]) * (p[v] - q[v]) for v in range(len(p))) / real.sum()
        labels -= q[ids[row, position + 1]] / real.sum()
    np.testing.assert_allclose(metrics["distillation"], divergence, rtol=1e-4)
    np.testing.assert_allclose(metrics["task_loss"], labels, rtol=1e-4)
    np.testing.assert_allclose(loss, weight * divergence + (1 - weight) * labels, rtol=1e-4)


TRAINED = {
    "cores_and_norms": lambda name: name.endswith(("cores/0", "cores/1", "scale")),
    "cores": lambda name: name.endswith(("cores/0", "cores/1")),
    "auxiliary": lambda name: name.endswith("cores/1"),
}


@pytest.mark.parametrize("trainable", TRAINED)
def test_which_parameters_are_trained(dense, student, trainable):
    learnt = healing.learning(student, dense, trainable=trainable, distill_weight=0.5)
    trained = training.state.flatten(training.state.split(learnt.model, learnt.trainable)[1])
    expected = filter(TRAINED[trainable], training.state.flatten_variables(student))
    assert set(trained) == {f"student/{name}" for name in expected}


def test_all_else_is_frozen_and_the_divergence_falls(student, healed, folder):
    assert changed(student, healed) == set(
        filter(TRAINED["cores_and_norms"], models.to_arrays(student))
    )
    assert healed.shapes == student.shapes
    assert healed.config == student.config
    logged = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    divergences = [line["distillation"] for line in logged if "distillation" in line]
    assert len(divergences) == SHORT["steps"]
    assert sum(divergences[-4:]) < 0.9 * sum(divergences[:4])
    result = json.loads((folder / "result.json").read_text())
    assert {"perplexity_before", "perplexity_after", "protocol", "fit"} <= result.keys()


def test_low_rank_adapters_beside_pivoted_chains(dense, student):
    rules = [("layers/.*/(query|down)", {"rank": 2})]
    wider = compression.add_adapters(student, rules, rngs=nnx.Rngs(0))
    moved = changed(wider, healing.heal(wider, dense, TOKENS, trainable="adapters", **SHORT))
    assert moved == {name for name in models.to_arrays(wider) if "/adapter/" in name}


# A run that is killed behind its fifth step.
KILLED = """
import os, signal, sys
from mpojax import training
from mpojax.methods import healing
from tests.methods import test_healing as t

dense = t.original()
t.until(5, lambda: os.kill(os.getpid(), signal.SIGKILL), dense, t.pivoted(dense), sys.argv[1])
"""


def until(step, action, dense, student, folder):
    """Heals with checkpoints, up to an action behind a step."""

    def act(loop):
        if loop.step == step:
            action()

    with pytest.MonkeyPatch.context() as patch:
        made = healing.healing._hooks
        patch.setattr(healing.healing, "_hooks", lambda *given: [training.Call(act), *made(*given)])
        healing.heal(student, dense, TOKENS, workdir=folder, checkpoint_every=2, **SHORT)


def check_resumed(dense, student, healed, folder):
    files = [path.as_posix() for path in (folder / "checkpoints").rglob("*")]
    assert any("checkpoints/4" in name for name in files)
    assert not any("teacher" in name for name in files)
    given = {"workdir": folder, "checkpoint_every": 2} | SHORT
    assert not changed(healed, healing.heal(student, dense, TOKENS, **given))
    return given


def test_a_run_that_failed_resumes_to_the_same_bits(dense, student, healed, tmp_path):
    def fail():
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        until(5, fail, dense, student, tmp_path)
    given = check_resumed(dense, student, healed, tmp_path)
    assert not changed(healed, healing.heal(student, dense, TOKENS, **given))  # finished
    with pytest.raises(ValueError, match=r"another experiment(.|\n)*distill_weight"):
        healing.heal(student, dense, TOKENS, **given, distill_weight=0.25)
    with pytest.raises(ValueError, match=r"another experiment(.|\n)*tokens"):
        healing.heal(student, dense, TOKENS[1:], **given)


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_bits(dense, student, healed, tmp_path):
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    killed = subprocess.run(command, cwd=ROOT, capture_output=True, check=False, timeout=900)
    assert killed.returncode == -9, killed.stderr.decode()[-2000:]
    check_resumed(dense, student, healed, tmp_path)


def test_batches_in_parts_with_recomputed_layers(dense, student, healed):
    parts = healing.heal(student, dense, TOKENS, grad_accum_steps=2, remat=True, **SHORT)
    ids = jnp.asarray(TOKENS[:24].reshape(1, 24), jnp.int32)
    np.testing.assert_allclose(healed(ids), parts(ids), atol=1e-2)
    assert parts.config == student.config


def test_labels_alone_need_no_teacher(student):
    given = SHORT | {"distill_weight": 0.0, "dtype": "bfloat16"}
    healed = healing.heal(student, None, TOKENS, **given)
    assert changed(student, healed)
    assert healed.config == student.config
    assert {array.dtype.name for array in models.to_arrays(healed).values()} == {"float32", "int32"}


WRONG = {
    "distill_weight=1.5 must be": {"distill_weight": 1.5},
    "steps=0 must be": {"steps": 0},
    "dtype='int8' must be": {"dtype": "int8"},
    "pass it as teacher": {"teacher": None},
    "unknown trainable set 'core'": {"trainable": "core"},
    "has no adapters": {"trainable": "adapters"},
    "longer than max_positions=32": {"length": 64},
    "token ids in": {"tokens": TOKENS + 30},
    "tokens has only 5": {"tokens": TOKENS[:5]},
}


@pytest.mark.parametrize("message", WRONG)
def test_what_does_not_fit_says_so(dense, student, message, tmp_path):
    given = SHORT | {"student": student, "teacher": dense, "tokens": TOKENS} | WRONG[message]
    with pytest.raises(ValueError, match=message):
        healing.heal(**given, workdir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_teacher_with_other_tokens(student):
    other = models.build(dataclasses.replace(student.config, vocab_size=60), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="50 tokens and its teacher 60"):
        healing.heal(student, other, TOKENS, **SHORT)
