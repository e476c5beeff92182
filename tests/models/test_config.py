"""Settings: what is refused, the table of matrices, the grouping of layers into stacks."""

import dataclasses

import pytest

from mpojax import models, mpo
from mpojax.models import matrices, stack
from tests.models import small

CONFIG = models.EncoderConfig(
    vocab_size=50, hidden_size=8, num_layers=4, num_heads=2, intermediate_size=16, max_positions=12
)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 0}, "vocab_size=0 must be an integer from 1"),
        ({"num_layers": 2.0}, "num_layers=2.0 must be an integer"),
        ({"num_heads": 3}, "hidden_size=8 is not a multiple of num_heads=3"),
        (
            {"activation": "swoosh"},
            "='swoosh' must be one of 'gelu', 'gelu_tanh', 'relu'",
        ),
        ({"pooling": "max"}, "pooling='max' must be one of 'none', 'pooler', 'mean', 'first'"),
        ({"dtype": "float16"}, "dtype='float16' must be one of 'float32', 'bfloat16'"),
        ({"dropout": 1.0}, "dropout=1.0 must be a finite number of at least 0.0 and below 1.0"),
        ({"classifier_dropout": -0.1}, "classifier_dropout=-0.1"),
        ({"norm_eps": 0.0}, "norm_eps=0.0 must be a finite number above 0"),
        ({"pad_id": 50}, "pad_id=50 must be an integer from 0 to 49"),
        ({"num_labels": 0}, "num_labels=0"),
        ({"num_labels": 2, "pooling": "none"}, "num_labels=2 needs a sentence vector"),
        ({"source_config": "[]"}, "JSON text of an object"),
        ({"token_types": -1}, "token_types=-1 must be an integer from 0"),
        ({"embedding_size": 0}, "embedding_size=0 must be an integer from 1"),
        ({"norm": "batch"}, "norm='batch' must be one of 'layer_norm', "),
        ({"pooler_activation": "silu"}, "pooler_activation='silu' must be one of 'tanh', 'relu'"),
        ({"head": "tagger"}, "head='tagger' must be one of 'classifier', 'span'"),
        (
            {"head": "span", "num_labels": 3, "pooling": "none"},
            "num_labels=3 must be 2 for head='span'",
        ),
        ({"head": "span", "num_labels": 2}, "pooling='pooler' must be 'none' for head='span'"),
        ({"projection": "word"}, "projection='word' needs embedding_size"),
        ({"trigram_input": True}, "trigram_input=True needs embedding_size and projection='word'"),
        ({"trigram_input": True, "embedding_size": 4}, "trigram_input=True needs"),
        ({"bottleneck_size": 5}, "bottleneck_size=5 is not a multiple of num_heads=2"),
        ({"num_feed_forwards": 2}, "num_feed_forwards=2 has no meaning with bottleneck_size=None"),
        ({"bottleneck_attention": True}, "bottleneck_attention=True has no meaning"),
        ({"scan_boundaries": (4,)}, r"scan_boundaries=\(4,\) must be layers among \[1, 2, 3\]"),
        ({"layer_groups": 1, "scan_boundaries": (1,)}, r"among \[\] \(first layers of blocks"),
    ],
)
def test_impossible_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **changes)


def test_every_matrix_is_listed_with_its_size():
    sizes = dataclasses.replace(CONFIG, num_labels=3).matrix_sizes()
    assert len(sizes) == 3 + 4 * 6 + 2
    assert sizes["embeddings/word"] == (50, 8)
    assert sizes["embeddings/position"] == (12, 8)
    assert sizes["layers/3/feed_forward/up"] == (8, 16)
    assert sizes["layers/3/feed_forward/down"] == (16, 8)
    assert sizes["pooler"] == (8, 8)
    assert sizes["head"] == (8, 3)
    assert "pooler" not in dataclasses.replace(CONFIG, pooling="mean").matrix_sizes()


def test_matrices_of_other_encoders():
    sizes = small.ALBERT.matrix_sizes()
    assert sizes["embeddings/word"] == (50, 8)
    assert sizes["embeddings/position"] == (12, 8)
    assert sizes["embeddings/projection"] == (8, 16)
    assert [path for path in sizes if path.startswith("layers/")] == [
        f"layers/0/{name}"
        for name in (
            *("attention/query", "attention/key", "attention/value", "attention/out"),
            *("feed_forward/up", "feed_forward/down"),
        )
    ]
    assert "embeddings/token_type" not in small.DISTILBERT.matrix_sizes()
    sizes = small.MOBILEBERT.matrix_sizes()
    assert sizes["embeddings/word"] == (50, 6)
    assert sizes["embeddings/token_type"] == (2, 16)
    assert sizes["embeddings/projection"] == (18, 16)
    assert {path: size for path, size in sizes.items() if path.startswith("layers/2/")} == {
        "layers/2/bottleneck/input": (16, 8),
        "layers/2/bottleneck/attention": (16, 8),
        "layers/2/attention/query": (8, 8),
        "layers/2/attention/key": (8, 8),
        "layers/2/attention/value": (16, 8),
        "layers/2/attention/out": (8, 8),
        "layers/2/feed_forwards/0/up": (8, 12),
        "layers/2/feed_forwards/0/down": (12, 8),
        "layers/2/feed_forwards/1/up": (8, 12),
        "layers/2/feed_forwards/1/down": (12, 8),
        "layers/2/bottleneck/output": (8, 16),
    }
    narrow = dataclasses.replace(small.MOBILEBERT, bottleneck_attention=True).matrix_sizes()
    assert narrow["layers/0/attention/value"] == (8, 8)
    assert "layers/0/bottleneck/attention" not in narrow


def test_layers_with_equal_shapes_form_one_stack():
    full = mpo.MPOShape.balanced(8, 8, n=3)
    cut = full.with_bonds(2)
    path = "layers/{}/attention/query".format

    def ranges(shapes):
        return stack.stack_ranges(CONFIG, shapes, CONFIG.stacks[0])

    assert ranges({}) == [range(4)]
    assert ranges({path(i): full for i in range(4)}) == [range(4)]
    assert ranges({path(1): full, path(2): full}) == [range(1), range(1, 3), range(3, 4)]
    assert ranges({path(0): full, path(1): cut, path(2): cut, path(3): full}) == [
        range(1),
        range(1, 3),
        range(3, 4),
    ]
    # The order in which matrices are named is no difference.
    key = "layers/{}/attention/key".format
    assert ranges({path(0): full, key(0): cut, key(1): cut, path(1): full}) == [
        range(2),
        range(2, 4),
    ]


def test_shapes_that_do_not_fit_are_all_named():
    shapes = {
        "layers/9/attention/query": mpo.MPOShape.balanced(8, 8),
        "pooler": mpo.MPOShape.balanced(8, 16),
    }
    with pytest.raises(ValueError, match="layers/9/attention/query is no matrix") as error:
        matrices.checked_shapes(CONFIG, shapes)
    assert "pooler is 8 x 8, its shape is for 8 x 16" in str(error.value)


def test_names_of_classes():
    three = dataclasses.replace(CONFIG, num_labels=3)
    named = three.with_label_names(("bug", "feature", "question"))
    assert named.label_names == ("bug", "feature", "question")
    assert dataclasses.replace(named, num_labels=2).label_names == ()  # not those of another head
    assert named.with_label_names() == three.with_label_names()
    assert three.label_names == ()
    generic = three.with_label_names([f"LABEL_{i}" for i in range(3)])
    assert generic.label_names == ()
    with pytest.raises(ValueError, match=r"label_names=\('a',\) must be num_labels=3 names"):
        three.with_label_names(["a"])


@pytest.mark.parametrize("text", ['{"id2label": 5}', '{"id2label": {"0": 1}}', '{"id2label": []}'])
def test_names_of_classes_that_are_none(text):
    assert dataclasses.replace(CONFIG, num_labels=2, source_config=text).label_names == ()
