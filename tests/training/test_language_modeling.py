"""Loss, routers' losses and evaluation of language models."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mpojax import data, models, nn, training
from mpojax.training.tasks import language_modeling

ROWS, LENGTH, WORDS = 4, 6, 11
RNG = np.random.default_rng(0)
LOGITS = RNG.standard_normal((ROWS, LENGTH, WORDS)).astype(np.float32)
WEIGHTS = (RNG.random((ROWS, LENGTH)) < 0.6).astype(np.float32)
BATCH = {
    "input_ids": np.zeros((ROWS, LENGTH), np.int32),
    "targets": RNG.integers(0, WORDS, (ROWS, LENGTH), np.int32),
    "target_weights": WEIGHTS,
}
KEY = jax.random.key(0)


def routing(layers_count, experts, seed):
    rng = np.random.default_rng(seed)

    def made(*shape):
        return jnp.asarray(rng.random((layers_count, *shape)), jnp.float32)

    return nn.RouterStatistics(made(), made(experts), made(experts), made(), made(), made(), made())


ROUTING = (routing(2, 3, 1), routing(1, 4, 2))


class Model:
    """Gives the logits and statistics it is told to, and keeps what it was called with."""

    def __init__(self, logits=LOGITS, routing=()):
        self.logits, self.routing, self.called = jnp.asarray(logits), routing, None

    def forward(self, *arrays, dropout_key=None):
        self.called = arrays, dropout_key
        return types.SimpleNamespace(logits=self.logits, routing=self.routing)


def log_probabilities(logits=LOGITS):
    return np.asarray(jax.nn.log_softmax(logits.astype(np.float64), axis=-1))


def expected_task():
    picked = np.take_along_axis(log_probabilities(), BATCH["targets"][..., None], -1)[..., 0]
    return -np.sum(picked * WEIGHTS) / WEIGHTS.sum()


class TestLoss:
    def test_mean_over_targets_that_count(self):
        loss, metrics = training.language_model_loss()(Model(), BATCH, KEY)
        np.testing.assert_allclose(loss, expected_task(), rtol=1e-6)
        np.testing.assert_allclose(metrics["task_loss"], expected_task(), rtol=1e-6)
        hits = (np.argmax(LOGITS, -1) == BATCH["targets"]) * WEIGHTS
        np.testing.assert_allclose(metrics["accuracy"], hits.sum() / WEIGHTS.sum(), rtol=1e-6)
        assert set(metrics) == {"task_loss", "accuracy"}

    def test_smoothing_is_cross_entropy_with_smooth_targets(self):
        loss, metrics = training.language_model_loss(label_smoothing=0.2)(Model(), BATCH, KEY)
        targets = 0.8 * np.eye(WORDS)[BATCH["targets"]] + 0.2 / WORDS
        each = -np.sum(targets * log_probabilities(), axis=-1)
        np.testing.assert_allclose(loss, np.sum(each * WEIGHTS) / WEIGHTS.sum(), rtol=1e-5)
        np.testing.assert_allclose(metrics["task_loss"], expected_task(), rtol=1e-6)

    def test_losses_of_routers_are_summed_over_layers(self):
        loss_fn = training.language_model_loss(balance_weight=0.3, z_weight=0.07)
        loss, metrics = loss_fn(Model(routing=ROUTING), BATCH, KEY)

        def of_layers(name):
            return np.concatenate([np.asarray(getattr(s, name)) for s in ROUTING])

        total = 0.3 * of_layers("balance").sum() + 0.07 * of_layers("z_loss").sum()
        np.testing.assert_allclose(loss, expected_task() + total, rtol=1e-6)
        np.testing.assert_allclose(metrics["task_loss"], expected_task(), rtol=1e-6)
        for name in ("balance", "z_loss", "entropy", "dropped"):
            np.testing.assert_allclose(
                metrics[f"router/{name}"], of_layers(name).mean(), rtol=1e-6, err_msg=name
            )
        largest = [3 * x.max() for x in np.asarray(ROUTING[0].load)]
        largest += [4 * np.asarray(ROUTING[1].load).max()]
        np.testing.assert_allclose(metrics["router/max_load"], np.mean(largest), rtol=1e-6)
        assert all(jnp.issubdtype(x.dtype, jnp.floating) for x in metrics.values())

    def test_default_weights(self):
        loss, metrics = training.language_model_loss()(Model(routing=ROUTING), BATCH, KEY)
        balance = sum(float(jnp.sum(s.balance)) for s in ROUTING)
        np.testing.assert_allclose(loss - metrics["task_loss"], 0.01 * balance, rtol=1e-4)

    def test_targets_without_weight_have_no_gradient(self):
        def loss(logits):
            return training.language_model_loss(label_smoothing=0.1)(Model(logits), BATCH, KEY)[0]

        gradient = np.asarray(jax.jit(jax.grad(loss))(jnp.asarray(LOGITS)))
        np.testing.assert_array_equal(np.any(gradient != 0.0, axis=-1), WEIGHTS > 0)

    def test_nothing_to_predict_is_zero(self):
        batch = BATCH | {"target_weights": np.zeros_like(WEIGHTS)}
        loss, _ = training.language_model_loss(label_smoothing=0.1)(Model(), batch, KEY)
        assert float(loss) == 0.0

    def test_total_of_micro_batches(self):
        batch = BATCH | {"target_weights_total": np.float32(2 * WEIGHTS.sum())}
        loss, metrics = training.language_model_loss(label_smoothing=0.1)(Model(), batch, KEY)
        whole, _ = training.language_model_loss(label_smoothing=0.1)(Model(), BATCH, KEY)
        np.testing.assert_allclose(2 * loss, whole, rtol=1e-6)
        np.testing.assert_allclose(2 * metrics["task_loss"], expected_task(), rtol=1e-6)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"balance_weight": -1.0}, "balance_weight=-1.0 must be a finite number of at least 0"),
            ({"z_weight": -1.0}, "z_weight=-1.0 must be a finite number of at least 0"),
            (
                {"label_smoothing": 1.0},
                r"label_smoothing=1.0 must be .* below 1",
            ),
        ],
    )
    def test_bad_settings(self, settings, message):
        with pytest.raises(ValueError, match=message):
            training.language_model_loss(**settings)


class TestKindsOfBatches:
    def test_decoder(self):
        model = Model()
        language_modeling.forward(model, BATCH, KEY)
        (ids, mask), key = model.called
        assert ids is BATCH["input_ids"]
        assert mask is None
        assert key is KEY
        batch = BATCH | {"attention_mask": np.ones((ROWS, LENGTH), np.int32)}
        language_modeling.forward(model, batch)
        assert model.called == ((ids, batch["attention_mask"]), None)

    def test_sequence_to_sequence(self):
        model = Model()
        batch = BATCH | {
            "attention_mask": np.ones((ROWS, 9), np.int32),
            "decoder_input_ids": np.ones((ROWS, LENGTH), np.int32),
        }
        language_modeling.forward(model, batch, KEY)
        names = ("input_ids", "attention_mask", "decoder_input_ids")
        arrays, key = model.called
        assert all(x is batch[name] for x, name in zip(arrays, names, strict=False))
        assert arrays[3] is None
        assert key is KEY

    def test_errors(self):
        with pytest.raises(ValueError, match=r"the batch lacks \['targets'\]; it has"):
            language_modeling.forward(Model(), {n: a for n, a in BATCH.items() if n != "targets"})
        with pytest.raises(ValueError, match="a SimpleNamespace has no forward"):
            language_modeling.forward(types.SimpleNamespace(), BATCH)


class TestMetrics:
    def columns(self):
        return {n: np.asarray(x) for n, x in language_modeling.predict(Model(), BATCH).items()}

    def test_over_all_targets(self):
        made = language_modeling.metrics(self.columns(), num_words=5)
        nats = expected_task() * WEIGHTS.sum()
        assert made["loss"] == pytest.approx(expected_task(), rel=1e-6)
        assert made["perplexity"] == pytest.approx(np.exp(expected_task()), rel=1e-5)
        assert made["word_perplexity"] == pytest.approx(np.exp(nats / 5), rel=1e-5)
        hits = (np.argmax(LOGITS, -1) == BATCH["targets"]) * WEIGHTS
        assert made["accuracy"] == pytest.approx(hits.sum() / WEIGHTS.sum())
        assert "word_perplexity" not in language_modeling.metrics(self.columns())

    def test_extremes(self):
        columns = self.columns() | {"loss": np.full(ROWS, 1e5, np.float32)}
        assert language_modeling.metrics(columns)["perplexity"] == np.inf
        columns = self.columns() | {"weight": np.zeros(ROWS, np.float32)}
        with pytest.raises(ValueError, match="no target counts"):
            language_modeling.metrics(columns)


CONFIG = models.DecoderConfig(
    vocab_size=WORDS,
    hidden_size=8,
    num_layers=1,
    num_heads=2,
    intermediate_size=16,
    max_positions=LENGTH,
    dropout=0.0,
    embedding_dropout=0.0,
    attention_dropout=0.0,
)


def decoder():
    return models.build(CONFIG, rngs=nnx.Rngs(0))


def examples(count):
    rng = np.random.default_rng(3)
    ids = rng.integers(0, WORDS, (count, LENGTH + 1), np.int32)
    kept = np.arange(LENGTH) < rng.integers(1, LENGTH + 1, (count, 1))
    return {
        "input_ids": ids[:, :-1],
        "targets": ids[:, 1:],
        "target_weights": kept.astype(np.float32),
    }


def test_evaluation_of_a_decoder_does_not_depend_on_the_batches():
    model, arrays = decoder(), examples(13)
    evaluate = language_modeling.evaluator()
    many = evaluate(model, data.EvalData(arrays, 8))
    one = evaluate(model, data.EvalData(arrays, 4), training.make_mesh(devices=jax.devices()[:1]))
    logits = model(arrays["input_ids"])
    picked = log_probabilities(np.asarray(logits)).reshape(-1, WORDS)
    picked = picked[np.arange(picked.shape[0]), arrays["targets"].ravel()]
    weights = arrays["target_weights"].ravel()
    loss = -np.sum(picked * weights) / weights.sum()
    for made in (many, one):
        assert set(made) == {"loss", "accuracy", "perplexity"}
        assert made["loss"] == pytest.approx(loss, rel=1e-5)
    counted = data.EvalData(arrays, 8)
    counted.num_words = 20
    made = evaluate(model, counted)
    assert made["word_perplexity"] == pytest.approx(np.exp(loss * weights.sum() / 20), rel=1e-4)
    graph, state = nnx.split(model)
    broken = nnx.merge(graph, jax.tree.map(lambda x: x * jnp.nan, state))
    with pytest.raises(
        training.NonFiniteOutputError, match=r"^loss, accuracy, perplexity: .* 1 of"
    ):
        evaluate(broken, data.EvalData(arrays, 8))


def test_every_target_of_the_batch_counts_alike_in_micro_batches():
    def trained(grad_accum_steps):
        model = decoder()
        optimizer = training.make_optimizer(
            {"name": "sgd", "learning_rate": 0.1, "beta1": 0.0}, training.roles(model), 2
        )
        return training.fit(
            training.TrainState.create(model, nnx.Param, optimizer),
            training.language_model_loss(label_smoothing=0.1),
            data.TrainData(examples(16), 16, seed=0),
            optimizer=optimizer,
            steps=2,
            mesh=training.make_mesh(devices=jax.devices()[:1]),
            log_every=1,
            grad_accum_steps=grad_accum_steps,
        )

    whole, parts = trained(1), trained(4)
    for name in ("loss", "task_loss", "accuracy", "gradient_norm"):
        np.testing.assert_allclose(parts.metrics[name], whole.metrics[name], rtol=1e-5)
    assert whole.metrics["loss"] != pytest.approx(whole.metrics["task_loss"], rel=1e-6)


def test_an_encoder_decoder_learns():
    config = models.EncoderDecoderConfig(
        vocab_size=WORDS, hidden_size=8, num_layers=1, num_heads=2, head_size=4,
        intermediate_size=16, dropout=0.0,
    )  # fmt: skip
    model = models.build(config, rngs=nnx.Rngs(0))
    optimizer = training.make_optimizer({"learning_rate": 0.1}, training.roles(model), 99)
    step = training.TrainStep(training.language_model_loss(), optimizer)
    state = training.TrainState.create(model, nnx.Param, optimizer)
    ids = np.random.default_rng(0).integers(1, WORDS, (4, 5), np.int32)
    batch = {
        "input_ids": ids,
        "attention_mask": np.ones((4, 5), np.int32),
        "decoder_input_ids": np.pad(ids, ((0, 0), (1, 0)))[:, :-1],
        "targets": ids,
        "target_weights": np.ones((4, 5), np.float32),
    }
    losses = []
    for _ in range(8):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0] - 0.4
    assert not any(name.startswith("router") for name in metrics)
