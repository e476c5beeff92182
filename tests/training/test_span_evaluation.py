"""SQuAD: loss, official metrics, and decoding against a search of all spans."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mpojax import data, models, training
from mpojax.data.sources import squad
from mpojax.training.scores import labelled as scores_lib
from mpojax.training.tasks import labelled

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"bcdefghijklm?"]  # "a" is an article
LETTERS = WORDS[4:-1]
LENGTH, OVERLAP = 12, 2


class SpanModel(nnx.Module):
    """Logits (B, S, 2) from each token and its place; noise with a key."""

    def __init__(self):
        keys = jax.random.split(jax.random.key(0))
        self.table = nnx.Param(jax.random.normal(keys[0], (len(WORDS), 2), jnp.float32))
        self.places = nnx.Param(jax.random.normal(keys[1], (LENGTH, 2), jnp.float32))

    def __call__(self, input_ids, attention_mask=None, token_type_ids=None, dropout_key=None):
        logits = self.table[...][input_ids] + self.places[...][None, : input_ids.shape[1]]
        if dropout_key is not None:
            logits = logits + jax.random.normal(dropout_key, logits.shape, logits.dtype)
        return logits


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("words")
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    return data.Tokenizer.from_folder(folder)


@pytest.fixture(scope="module")
def split():
    """Twelve questions about random letters; the answers are two letters."""
    rng, rows = np.random.default_rng(0), []
    for number in range(12):
        letters = rng.choice(LETTERS, rng.integers(3, 22))
        context = "  ".join(letters)
        start = int(rng.integers(0, len(letters) - 1))
        answer = context[3 * start : 3 * start + 4]
        rows.append((f"{letters[0]} ?", context, [answer, "z"], [3 * start, 0], str(number)))
    return squad.make_split("test", rows)


@pytest.fixture(scope="module")
def arrays(split, tokenizer):
    return split.encode(tokenizer, LENGTH, OVERLAP)


def test_changed_answers_and_contexts_are_other_data(split, tokenizer, arrays):
    """Though tokens and the first answer's place stay, scores are others."""

    def encoded(changed):
        found = changed.encode(tokenizer, LENGTH, OVERLAP)
        for name, array in arrays.items():
            np.testing.assert_array_equal(found[name], array)
        return data.EvalData(found | {"text_hash": changed.text_hash(found)}, 4)

    own = encoded(split)
    assert encoded(split).fingerprint() == own.fingerprint()
    assert "text_hash" not in own[0]
    more = [*split.answers[:-1], (*split.answers[-1], "y")]
    spaced = [*split.pairs[:-1], split.pairs[-1] + " "]
    for change in ({"answers": more}, {"pairs": spaced}):
        assert encoded(dataclasses.replace(split, **change)).fingerprint() != own.fingerprint()


def search(model, arrays, split, max_length):
    """The best span of each question by trying all of them."""
    logits = np.float64(
        model(arrays["input_ids"], arrays["attention_mask"], arrays["token_type_ids"])
    )
    best = {}
    for row, example in enumerate(arrays["example_index"]):
        inside = np.flatnonzero(arrays["context_mask"][row])
        for start in inside:
            for end in inside[(inside >= start) & (inside < start + max_length)]:
                score = logits[row, start, 0] + logits[row, end, 1]
                place = arrays["offsets"][row, start, 0], arrays["offsets"][row, end, 1]
                if example not in best or score > best[example][0]:
                    best[example] = score, split.pairs[example][slice(*place)]
    return [best[example][1] for example in range(len(split))]


@pytest.mark.parametrize("max_answer_length", [1, 3, 30])
@pytest.mark.parametrize("lengths", [(), (8,)])
def test_decoding_finds_the_best_span_of_all_windows(split, arrays, max_answer_length, lengths):
    model = SpanModel()
    evaluator = labelled.SpanEvaluator(split, max_answer_length=max_answer_length)
    texts = evaluator.texts(model, data.EvalData(arrays, 8, lengths=lengths))
    expected = search(model, arrays, split, max_answer_length)
    assert texts == expected
    assert len(arrays["labels"]) > len(split)
    assert max(len(text.split()) for text in texts) <= max_answer_length


def test_metrics_of_a_task(split, arrays):
    task = data.TextTask("squad", {"dev": split}, (), "span")
    evaluator = training.evaluator(task)
    model = SpanModel()
    found = [evaluator(model, data.EvalData(arrays, size)) for size in (8, 16)]
    assert found[0] == found[1]
    assert list(found[0]) == ["f1", "exact_match"]
    texts = search(model, arrays, split, 30)
    matches = [
        text in ("z", answers[0]) for text, answers in zip(texts, split.answers, strict=True)
    ]
    assert found[0]["exact_match"] == pytest.approx(np.mean(matches))
    assert 0 < found[0]["f1"] < 1


def test_right_answers_score_one(split, arrays):
    """A model that points at the labels; windows without the answer point nowhere."""
    labels = arrays["labels"]
    hits = np.swapaxes(labels[:, :, None] == np.arange(LENGTH), 1, 2)
    logits = np.where(labels[:, None, :] == 0, -1.0, 20.0 * hits).astype(np.float32)

    class Pointer(nnx.Module):
        def __init__(self):
            self.logits = nnx.Param(jnp.asarray(logits))

        def __call__(self, input_ids, attention_mask=None, token_type_ids=None):
            # The number of the window stands in the first place of its mask.
            return self.logits[...][attention_mask[:, 0] - 1]

    numbered = dict(arrays, attention_mask=arrays["attention_mask"].copy())
    numbered["attention_mask"][:, 0] = np.arange(1, len(labels) + 1)
    evaluator = labelled.SpanEvaluator(split)
    assert evaluator(Pointer(), data.EvalData(numbered, 8)) == {"f1": 1.0, "exact_match": 1.0}


def test_few_candidates_may_leave_no_span(split, arrays):
    columns = {
        "scores": np.array([[[2.0, 1.0], [3.0, 2.0]], [[2.0, -np.inf], [3.0, -np.inf]]]),
        "places": np.array([[[5, 3], [4, 2]], [[5, 0], [4, 0]]]),
    }
    spans, scores = labelled.best_spans(columns, 30)
    np.testing.assert_array_equal(spans[0], [3, 4])
    np.testing.assert_array_equal(scores, [4.0, -np.inf])
    spans, scores = labelled.best_spans(columns, 1)
    np.testing.assert_array_equal(scores, [-np.inf, -np.inf])
    broken = dict(columns, scores=np.full((2, 2, 2), np.nan))
    np.testing.assert_array_equal(labelled.best_spans(broken, 30)[1], [-np.inf, -np.inf])


def test_loss(split, arrays):
    model = SpanModel()
    batch = {name: arrays[name][:7] for name in ("input_ids", "attention_mask", "labels")}
    batch["token_type_ids"] = arrays["token_type_ids"][:7]
    loss_fn, key = training.objective("span"), jax.random.key(3)
    loss, metrics = loss_fn(lambda *a: model(*a[:3]), batch, key)
    total, hits = [], []
    logits = np.float64(model(batch["input_ids"]))
    for row, real in enumerate(batch["attention_mask"] == 1):
        for side in (0, 1):
            line = logits[row, real, side]
            total.append(np.log(np.exp(line).sum()) - line[batch["labels"][row, side]])
        hits.append(all(logits[row, real].argmax(0) == batch["labels"][row]))
    np.testing.assert_allclose(loss, np.mean(total), rtol=1e-5)
    np.testing.assert_allclose(metrics["accuracy"], np.mean(hits))
    assert loss_fn(model, batch, key)[0] != loss  # the key is passed on
    gradient = jax.jit(jax.grad(lambda m: loss_fn(m, batch, key)[0]))(model)
    assert np.all(np.isfinite(gradient.table[...]))
    with pytest.raises(ValueError, match=r"shape \(7, 12, 2\); got \(7, 12, 3\). Give the model"):
        loss_fn(lambda *a: jnp.zeros((7, 12, 3)), batch, key)


def test_logits_that_are_not_finite(split, arrays):
    """Only those of the context count: padding and the question are never an answer."""
    model = SpanModel()
    data_ = data.EvalData(arrays, 8)
    evaluator = labelled.SpanEvaluator(split)
    letter = arrays["input_ids"][0][arrays["context_mask"][0] != 0][0]
    model.table[...] = model.table[...].at[WORDS.index("[PAD]")].set(jnp.nan)
    evaluator(model, data_)
    model.table[...] = model.table[...].at[letter].set(jnp.nan)
    with pytest.raises(training.NonFiniteOutputError, match=r"^f1, exact_match: .*batch 1 of"):
        evaluator(model, data_)


def test_data_of_another_split(split, arrays):
    evaluator = labelled.SpanEvaluator(split.take(5))
    with pytest.raises(ValueError, match="does not hold the windows of this evaluator's split"):
        evaluator(SpanModel(), data.EvalData(arrays, 8))
    with pytest.raises(ValueError, match="n_best=0 must be an integer of at least 1"):
        labelled.SpanEvaluator(split, n_best=0)


@pytest.mark.parametrize(
    ("prediction", "answer", "exact", "f1"),
    [
        ("The Cat.", "cat", 1, 1),
        ("an  old-cat", "oldcat", 1, 1),
        ("theatre", "the atre", 0, 0),
        ("in Paris, France", "Paris", 0, 0.5),
        ("the the dog", "a dog dog", 0, 2 / 3),
        ("", "dog", 0, 0),
        ("«Paris»", "Paris", 0, 0),  # only ASCII punctuation is removed
    ],
)
def test_official_normalisation(prediction, answer, exact, f1):
    assert scores_lib.exact_match(prediction, answer) == exact
    assert scores_lib.word_f1(prediction, answer) == pytest.approx(f1)


def test_the_best_of_several_answers_counts():
    answers = [("Paris", "in Paris"), ("dog",)]
    assert scores_lib.mean_over_questions("exact_match", ["in paris", "cat"], answers) == 0.5
    assert scores_lib.mean_over_questions("f1", ["Paris", "big dog"], answers) == pytest.approx(
        5 / 6
    )


@pytest.mark.slow
def test_an_encoder_learns_to_find_answers(tokenizer):
    """The answer is the letter asked for and the one after it; unseen contexts decide."""
    rng = np.random.default_rng(0)

    def make(count):
        rows = []
        for number in range(count):
            letters = rng.permutation(LETTERS)[: rng.integers(4, 12)]
            place = int(rng.integers(0, len(letters) - 1))
            answer = " ".join(letters[place : place + 2])
            context = " ".join(letters)
            rows.append((f"{letters[place]} ?", context, [answer], [2 * place], str(number)))
        return squad.make_split("test", rows)

    task = squad.make_task({"train": make(400), "dev": make(80)})
    train, dev = (task[name].encode(tokenizer, LENGTH, 3) for name in ("train", "dev"))
    config = models.EncoderConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        intermediate_size=64,
        max_positions=LENGTH,
        num_labels=task.num_labels,
        head="span",
        pooling="none",
        dropout=0.0,
        attention_dropout=0.0,
    )
    model = models.build(config, rngs=nnx.Rngs(0))
    evaluator, dev_data = training.evaluator(task), data.EvalData(dev, 40)
    assert evaluator(model, dev_data)["exact_match"] < 0.2
    settings = {"learning_rate": 3e-3, "warmup_steps": 20}
    optimizer = training.make_optimizer(settings, training.roles(model), 400)
    result = training.fit(
        training.TrainState.create(model, nnx.Param, optimizer, seed=0),
        training.objective(task.kind),
        data.TrainData(train, 64, seed=0),
        optimizer=optimizer,
        steps=400,
    )
    metrics = evaluator(result.state, dev_data)
    assert metrics["exact_match"] > 0.9
    assert metrics["f1"] >= metrics["exact_match"]
