"""One head for several tasks, against separate heads."""

import dataclasses
import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mpojax import data, io, models, mpo, training
from mpojax.methods import multitask
from mpojax.training import objectives
from tests.models import small

KEY = jax.random.key(0)
KINDS = {"pair": 2, "score": 0, "three": 3, "other": 2}  # classes; 0 = a regression


def task(name, count=20, seed=0):
    classes = KINDS[name]
    rng = np.random.default_rng([seed, classes])
    labels = rng.integers(0, classes, count).astype(np.int32) if classes else None
    labels = rng.uniform(1, 5, count).astype(np.float32) if labels is None else labels
    names = tuple(f"class {i}" for i in range(classes))
    metrics = ("accuracy", "f1") if classes == 2 else ()
    split = data.Split(["x"] * count, labels)
    kind = "classification" if classes else "regression"
    return data.TextTask(name, {"train": split, "dev": split}, names, kind, metrics)


TASKS = {name: task(name) for name in KINDS}
LABELS = {name: made["train"].labels for name, made in TASKS.items()}
HEADS = multitask.make_heads(TASKS, LABELS)


def tokens(count=20, seed=0):
    rng = np.random.default_rng(seed)
    mask = (np.arange(8)[None] < rng.integers(3, 9, count)[:, None]).astype(np.int32)
    return {
        "input_ids": rng.integers(0, 50, (count, 8)).astype(np.int32) * mask,
        "attention_mask": mask,
        "token_type_ids": np.zeros((count, 8), np.int32),
    }


def examples(name, seed=0):
    return tokens(seed=seed) | {"labels": LABELS[name]}


def shared_model(seed=0, **changes):
    config = dataclasses.replace(
        small.BERT, num_labels=8, pooling="first", dropout=0.0, attention_dropout=0.0, **changes
    )
    return small.random_model(config, seed=seed)


def test_blocks_of_columns():
    assert [(h.task, h.kind, h.start, h.stop) for h in HEADS] == [
        ("pair", "classification", 0, 2),
        ("score", "regression", 2, 3),
        ("three", "classification", 3, 6),
        ("other", "classification", 6, 8),
    ]
    standard = (LABELS["score"] - HEADS[1].shift) / HEADS[1].scale
    np.testing.assert_allclose([standard.mean(), standard.std()], [0, 1], atol=1e-5)
    assert all((h.scale, h.shift) == (1.0, 0.0) for h in HEADS if h.task != "score")


def test_scores_that_are_all_equal_keep_their_scale():
    (head,) = multitask.make_heads(
        {"score": TASKS["score"]}, {"score": np.full(4, 2.5, np.float32)}
    )
    assert (head.scale, head.shift) == (1.0, 2.5)


def mixed_batch():
    return data.Mixture({n: examples(n, i) for i, n in enumerate(TASKS)}, 24, seed=1)[0]


def linear(kernel, bias):
    """A classifier that is one linear map of a row's tokens."""

    def model(input_ids, attention_mask, token_type_ids, key):
        features = jax.nn.one_hot(input_ids, 50).sum(1) / 8
        return features @ kernel + bias[None, :]

    return model


def test_the_loss_is_that_of_separate_heads_in_value_and_gradient():
    batch = mixed_batch()
    assert set(batch["task"]) == {0, 1, 2, 3}
    rng = np.random.default_rng(3)
    separate = [
        tuple(
            rng.standard_normal((*rows, h.stop - h.start)).astype(np.float32)
            for rows in ((50,), ())
        )
        for h in HEADS
    ]
    joined = tuple(np.concatenate([head[i] for head in separate], axis=-1) for i in range(2))

    def of_joined(parameters):
        return multitask.mixture_loss(HEADS)(linear(*parameters), batch, KEY)

    def of_separate(parameters):
        total = 0.0
        for number, (head, own) in enumerate(zip(HEADS, parameters, strict=True)):
            rows = np.flatnonzero(batch["task"] == number)
            part = {name: array[rows] for name, array in batch.items()}
            part["labels"] = (part["labels"] - np.float32(head.shift)) / np.float32(head.scale)
            if head.kind == "classification":
                part["labels"] = part["labels"].astype(np.int32)
            loss, _ = training.objective(head.kind)(linear(*own), part, KEY)
            total = total + loss * len(rows) / len(batch["task"])
        return total

    (loss, _), gradient = jax.jit(jax.value_and_grad(of_joined, has_aux=True))(joined)
    expected, gradients = jax.jit(jax.value_and_grad(of_separate))(separate)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    for i in range(2):
        wanted = np.concatenate([g[i] for g in gradients], axis=-1)
        np.testing.assert_allclose(gradient[i], wanted, rtol=1e-5, atol=1e-6)
    assert np.all(np.isfinite(gradient[0]))


def test_a_row_moves_the_columns_of_its_task_alone():
    batch = {name: array[:1] for name, array in examples("three").items()}
    batch |= {"task": np.int32([2]), "labels": np.float32([1])}
    bias = np.zeros(8, np.float32)
    kernel = np.zeros((50, 8), np.float32)
    gradient = jax.jit(
        jax.grad(lambda b: multitask.mixture_loss(HEADS)(linear(kernel, b), batch, KEY)[0])
    )(bias)
    np.testing.assert_allclose(gradient, [0, 0, 0, 1 / 3, -2 / 3, 1 / 3, 0, 0], atol=1e-6)


def test_the_accuracy_is_that_of_the_rows_with_classes():
    batch = mixed_batch()
    logits = np.random.default_rng(0).standard_normal((24, 8)).astype(np.float32)
    _, metrics = multitask.mixture_loss(HEADS)(lambda *unused: jnp.asarray(logits), batch, KEY)
    hits = [
        np.argmax(logits[i, HEADS[t].start : HEADS[t].stop]) == batch["labels"][i]
        for i, t in enumerate(batch["task"])
        if t != 1
    ]
    np.testing.assert_allclose(metrics["accuracy"], np.mean(hits), rtol=1e-6)
    scores_only = batch | {"task": np.ones(24, np.int32)}
    _, metrics = multitask.mixture_loss(HEADS)(
        lambda *unused: jnp.asarray(logits), scores_only, KEY
    )
    assert metrics["accuracy"] == 0.0


def evaluate(model, size=8, lengths=()):
    evaluators = {name: training.evaluator(made, "dev") for name, made in TASKS.items()}
    main = {"pair": "f1", "score": "spearman", "three": "accuracy", "other": "accuracy"}
    found = multitask.TasksEvaluator(HEADS, evaluators, main)
    sets = {n: data.EvalData(examples(n, i), size, lengths=lengths) for i, n in enumerate(TASKS)}
    return found(model, sets), main


def test_evaluation_is_that_of_the_single_tasks():
    model = shared_model()
    found, main = evaluate(model, lengths=(5,))
    for number, (name, head) in enumerate(zip(TASKS, HEADS, strict=True)):
        single = multitask.single_task(model, head)
        assert single.config.num_labels == head.stop - head.start
        alone = training.evaluator(TASKS[name], "dev")(
            single, data.EvalData(examples(name, number), 8)
        )
        assert set(alone) == {k.split("/")[1] for k in found if k.startswith(f"{name}/")}
        for metric, value in alone.items():
            np.testing.assert_allclose(found[f"{name}/{metric}"], value, atol=1e-5)
    mean = np.mean([found[f"{name}/{metric}"] for name, metric in main.items()])
    np.testing.assert_allclose(found["average"], mean)


def test_logits_that_are_not_finite_are_named_with_their_task():
    graph, state = nnx.split(shared_model())
    broken = nnx.merge(graph, jax.tree.map(lambda x: x * jnp.nan, state))
    with pytest.raises(training.NonFiniteOutputError, match=r"^pair/accuracy, pair/f1: .*8 of 8"):
        evaluate(broken)


def test_the_cut_out_head_gives_scores_in_the_units_of_the_labels():
    model, head = shared_model(), HEADS[1]
    batch = tokens()
    whole = np.asarray(objectives.outputs(model, batch))
    wanted = whole[:, 2:3] * head.scale + head.shift
    found = objectives.outputs(multitask.single_task(model, head), batch)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(objectives.outputs(head.view(model), batch), wanted, rtol=1e-6)


def test_a_cut_out_model_is_saved_and_goes_on():
    single = multitask.single_task(shared_model(), HEADS[2])
    with tempfile.TemporaryDirectory() as folder:
        io.save_pretrained(single, pathlib.Path(folder) / "model")
        again = io.load_pretrained(pathlib.Path(folder) / "model")
    batch = examples("three")
    loss = [training.objective("classification")(m, batch, KEY)[0] for m in (single, again)]
    assert loss[0] == loss[1]


def test_columns_of_a_head_in_mpo_form():
    config = dataclasses.replace(small.BERT, num_labels=8, pooling="first", dropout=0.0)
    model = small.random_model(config, {"head": mpo.MPOShape.balanced(16, 8, n=3)})
    batch = tokens()
    wanted = np.asarray(objectives.outputs(model, batch))[:, 3:6] * 2.0 - 1.0
    cut = models.head_columns(model, 3, 6, scale=2.0, shift=-1.0)
    np.testing.assert_allclose(objectives.outputs(cut, batch), wanted, rtol=1e-4, atol=1e-5)


def test_cutting_needs_a_classifier_with_these_columns():
    with pytest.raises(ValueError, match="columns 6:9 must be some of the head's 8"):
        models.head_columns(shared_model(), 6, 9)
    with pytest.raises(ValueError, match="columns 2:2"):
        models.head_columns(shared_model(), 2, 2)
    with pytest.raises(ValueError, match="not a Encoder"):
        models.head_columns(small.random_model(small.BERT), 0, 1)


def test_a_model_with_another_number_of_outputs():
    with pytest.raises(ValueError, match=r"need a model with 8 outputs.*got shape \(24, 3\)"):
        multitask.mixture_loss(HEADS)(lambda *unused: jnp.zeros((24, 3)), mixed_batch(), KEY)
    config = dataclasses.replace(small.BERT, num_labels=3)
    with pytest.raises(ValueError, match="num_labels=8"):
        evaluate(models.build(config, rngs=nnx.Rngs(0)))


def test_spans_have_no_columns():
    questions = data.TextTask("q", {}, (), "span")
    with pytest.raises(ValueError, match=r"task 'q' is a span.*fine-tune on it alone"):
        multitask.make_heads(TASKS | {"q": questions}, LABELS)
    with pytest.raises(ValueError, match="at least one"):
        multitask.make_heads({}, {})
