"""Every architecture against transformers, both ways: encoders, classifiers, regression, spans."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

pytest.importorskip("torch")
pytest.importorskip("transformers")

from mpojax import compression, io, models
from tests import marks
from tests.parity import reference
from tests.parity.families import FAMILIES

TOLERANCE = 1e-5

run = jax.jit(lambda model, *inputs: model(*inputs))
every_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
# One per model type, for what does not depend on the layers.
TYPES = ["bert", "albert", "distilbert", "mobilebert", "electra", "roberta", "mpnet", "deberta"]
# Heads for spans and for tokens are one linear map in every family; their encoders: above.
one_of_each = pytest.mark.parametrize(
    "name", marks.slow_but({"bert", "mobilebert", "deberta"}, TYPES)
)


def _saved(model, folder):
    reference.quietly(model.save_pretrained, folder)
    return folder


def _ours(model, inputs):
    return np.asarray(run(model, *map(jnp.asarray, inputs)))


def _again_in_transformers(model, folder, kind):
    io.export_huggingface(model, folder)
    return reference.load(folder, getattr(reference.transformers, kind))


def _same_model(one, other):
    for (name, a), (other_name, b) in zip(
        models.to_arrays(one).items(), models.to_arrays(other).items(), strict=True
    ):
        assert name == other_name
        np.testing.assert_array_equal(a, b)


@every_family
def test_hidden_states(tmp_path, family):
    theirs = family.model("Model", seed=1)
    inputs = family.inputs()
    mask = inputs[1] == 1
    expected = reference.outputs(theirs, *inputs)
    ours = io.load_pretrained(_saved(theirs, tmp_path / "theirs"))
    hidden = _ours(ours, inputs)
    np.testing.assert_allclose(
        hidden[mask], expected.last_hidden_state.numpy()[mask], rtol=0, atol=TOLERANCE
    )
    if ours.config.pooling != "none":
        pooled = models.pool(ours, jnp.asarray(hidden), jnp.asarray(inputs[1]))
        np.testing.assert_allclose(pooled, expected.pooler_output.numpy(), rtol=0, atol=TOLERANCE)
    # And back: transformers computes the very same.
    again = _again_in_transformers(ours, tmp_path / "ours", type(theirs).__name__)
    np.testing.assert_array_equal(
        reference.outputs(again, *inputs).last_hidden_state, expected.last_hidden_state
    )
    assert set(again.state_dict()) == set(theirs.state_dict())
    _same_model(io.load_pretrained(tmp_path / "ours"), ours)


@pytest.mark.parametrize(
    ("name", "num_labels"),
    [
        # A single label changes the shape of the last map alone.
        *marks.slow_but({("bert", 1)}, [(name, 1) for name in TYPES]),
        *((name, 3) for name in TYPES),
        *((name, 3) for name in ("xlm-roberta", "camembert")),
        ("mobilebert bottleneck attention", 3),
    ],
)
def test_classifiers_and_regressions(tmp_path, name, num_labels):
    family = FAMILIES[name]
    theirs = family.model("ForSequenceClassification", seed=2, num_labels=num_labels)
    inputs = family.inputs(1)
    expected = reference.outputs(theirs, *inputs).logits.numpy()
    ours = io.load_pretrained(_saved(theirs, tmp_path / "theirs"))
    assert isinstance(ours, models.SequenceClassifier)
    logits = _ours(ours, inputs)
    assert logits.shape == (3, num_labels)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=TOLERANCE)
    again = _again_in_transformers(ours, tmp_path / "ours", type(theirs).__name__)
    # Weights to the bit; torch's product with a single column depends on where they lie in memory.
    before, after = theirs.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    for key, tensor in before.items():
        np.testing.assert_array_equal(after[key], tensor)
    np.testing.assert_allclose(
        reference.outputs(again, *inputs).logits, expected, rtol=0, atol=1e-6
    )
    assert again.config.num_labels == num_labels
    loaded = io.load_pretrained(tmp_path / "ours")
    _same_model(loaded, ours)
    assert loaded.config.classifier_dropout == ours.config.classifier_dropout


@one_of_each
def test_spans(tmp_path, name):
    family = FAMILIES[name]
    theirs = family.model("ForQuestionAnswering", seed=3)
    inputs = family.inputs(2)
    mask = inputs[1] == 1
    outputs = reference.outputs(theirs, *inputs)
    expected = np.stack([outputs.start_logits.numpy(), outputs.end_logits.numpy()], axis=-1)
    ours = io.load_pretrained(_saved(theirs, tmp_path / "theirs"))
    assert isinstance(ours, models.heads.SpanExtractor)
    logits = _ours(ours, inputs)
    assert logits.shape == (3, 9, 2)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits[mask], expected[mask], rtol=0, atol=TOLERANCE)
    again = _again_in_transformers(ours, tmp_path / "ours", type(theirs).__name__)
    np.testing.assert_array_equal(
        reference.outputs(again, *inputs).start_logits, outputs.start_logits
    )
    _same_model(io.load_pretrained(tmp_path / "ours"), ours)


@one_of_each
def test_labels_of_tokens(tmp_path, name):
    family = FAMILIES[name]
    theirs = family.model("ForTokenClassification", seed=3, num_labels=4)
    inputs = family.inputs(2)
    mask = inputs[1] == 1
    expected = reference.outputs(theirs, *inputs).logits.numpy()
    ours = io.load_pretrained(_saved(theirs, tmp_path / "theirs"))
    assert isinstance(ours, models.TokenClassifier)
    np.testing.assert_allclose(_ours(ours, inputs)[mask], expected[mask], rtol=0, atol=TOLERANCE)
    again = _again_in_transformers(ours, tmp_path / "ours", type(theirs).__name__)
    np.testing.assert_array_equal(reference.outputs(again, *inputs).logits, expected)
    loaded = io.load_pretrained(tmp_path / "ours")
    _same_model(loaded, ours)
    assert loaded.config.classifier_dropout == ours.config.classifier_dropout


@pytest.mark.parametrize(
    ("name", "kind"),
    # Each kind of head once with each way of naming what stands before it.
    [
        ("electra", "ForPreTraining"),
        ("roberta", "ForMaskedLM"),
        ("albert", "ForPreTraining"),
        ("distilbert", "ForMaskedLM"),
        ("mobilebert", "ForNextSentencePrediction"),
        *marks.slow_but(
            (),
            [
                ("electra", "ForMaskedLM"),
                ("albert", "ForMaskedLM"),
                ("mobilebert", "ForMaskedLM"),
                ("mobilebert", "ForPreTraining"),
            ],
        ),
    ],
)
def test_pretraining_models_leave_their_heads_behind(tmp_path, name, kind):
    family = FAMILIES[name]
    theirs = family.model(kind, seed=4)
    inputs = family.inputs(3)
    mask = inputs[1] == 1
    ours = io.load_pretrained(_saved(theirs, tmp_path))
    assert ours.config.num_labels is None
    expected = reference.outputs(theirs.base_model, *inputs).last_hidden_state.numpy()
    np.testing.assert_allclose(_ours(ours, inputs)[mask], expected[mask], rtol=0, atol=TOLERANCE)


FRESH = ("albert", "distilbert", "mobilebert", "electra", "roberta")


@pytest.mark.parametrize(
    ("name", "head"),
    # The head for spans is one linear map in every family; classifiers have a map before it
    # (roberta, electra) or none; of parity with that of each family: above.
    marks.slow_but(
        {("roberta", "classifier"), ("mobilebert", "classifier"), ("roberta", "span")},
        [(name, head) for head in ("classifier", "span") for name in FRESH],
    ),
)
def test_fresh_heads_export(tmp_path, name, head):
    """Pre-trained encoder, new head, all in MPO form and merged again: transformers agrees."""
    family = FAMILIES[name]
    base = io.load_pretrained(_saved(family.model("Model", seed=5), tmp_path / "theirs"))
    ours = models.with_head(base, 2, pooling="pooler", head=head, rngs=nnx.Rngs(0))
    small, _ = compression.compress(ours, [(".*", {"cores": 3})])
    inputs = family.inputs(4)
    mask = inputs[1] == 1
    logits = _ours(ours, inputs)
    scale = max(1.0, float(np.abs(logits).max()))
    np.testing.assert_allclose(_ours(small, inputs), logits, rtol=0, atol=1e-4 * scale)
    kind = "ForSequenceClassification" if head == "classifier" else "ForQuestionAnswering"
    theirs = _again_in_transformers(
        compression.merge(small), tmp_path / "ours", f"{family.prefix}{kind}"
    )
    outputs = reference.outputs(theirs, *inputs)
    if head == "classifier":
        np.testing.assert_allclose(outputs.logits, logits, rtol=0, atol=1e-4 * scale)
    else:
        np.testing.assert_allclose(
            outputs.end_logits[mask], logits[mask][:, 1], rtol=0, atol=1e-4 * scale
        )
