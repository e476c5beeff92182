"""Golden counts: bonds, core sizes, totals, shares, caps and break-even points."""

import dataclasses
import math
import re

import pytest
from flax import nnx

from mpojax import models, mpo
from tests.golden.matrices import BALANCED, SAME, UP

EMBEDDING = ((5, 10, 10, 10, 6), (2, 2, 4, 4, 2))
TABLE = ((6, 8, 10, 8, 8), (4, 4, 4, 4, 3))
TABLE_ALTERNATIVE = ((4, 8, 20, 12, 4), (4, 4, 4, 4, 3))
SAME_UP = ((4, 4, 4, 4, 3), (4, 4, 8, 6, 4))

# (lists, bonds, core sizes, total, ratio, auxiliary, auxiliary share in percent)
FULL_BONDS = {
    "768x768 balanced": (
        BALANCED,
        (12, 192, 192, 12),
        (144, 36864, 589824, 36864, 144),
        (663840, 1.12549, 74016, 11.150),
    ),
    "768x768 same": (
        SAME,
        (16, 256, 144, 9),
        (256, 65536, 589824, 20736, 81),
        (676433, 1.14684, 86609, 12.804),
    ),
    "768x3072": (
        UP,
        (12, 192, 384, 16),
        (144, 36864, 2359296, 147456, 256),
        (2544016, 1.07829, 184720, 7.261),
    ),
    "768x3072 same": (
        SAME_UP,
        (16, 256, 288, 12),
        (256, 65536, 2359296, 82944, 144),
        (2508176, 1.06310, 148880, 5.936),
    ),
    "768x2304": (
        ((4, 4, 4, 4, 3), (4, 4, 8, 6, 3)),
        (16, 256, 216, 9),
        (256, 65536, 1769472, 46656, 81),
        (1882001, 1.06359, 112529, 5.979),
    ),
    "1024x1024": (
        ((4, 4, 4, 4, 4), (4, 4, 4, 4, 4)),
        (16, 256, 256, 16),
        (256, 65536, 1048576, 65536, 256),
        (1180160, 1.12549, 131584, 11.150),
    ),
    "1024x4096": (
        ((4, 4, 4, 4, 4), (4, 4, 8, 8, 4)),
        (16, 256, 512, 16),
        (256, 65536, 4194304, 262144, 256),
        (4522496, 1.07825, 328192, 7.257),
    ),
    "2048x2048": (
        ((4, 4, 8, 4, 4), (4, 4, 8, 4, 4)),
        (16, 256, 256, 16),
        (256, 65536, 4194304, 65536, 256),
        (4325888, 1.03137, 131584, 3.042),
    ),
    "30000x128": (
        EMBEDDING,
        (10, 200, 480, 12),
        (100, 40000, 3840000, 230400, 144),
        (4110644, 1.07048, 270644, 6.584),
    ),
    "30720x768": (
        TABLE,
        (24, 768, 768, 24),
        (576, 589824, 23592960, 589824, 576),
        (24773760, 1.05005, 1180800, 4.766),
    ),
    "30720x768 alternative": (
        TABLE_ALTERNATIVE,
        (16, 512, 576, 12),
        (256, 262144, 23592960, 331776, 144),
        (24187280, 1.02519, 594320, 2.457),
    ),
    "256x256": (((2, 4, 4, 4, 2),) * 2, (4, 64, 64, 4), None, (73760, 1.12549, 8224, None)),
    "256x1024": (
        ((2, 4, 4, 4, 2), (4, 4, 4, 4, 4)),
        (8, 128, 128, 8),
        None,
        (295040, 1.12549, 32896, None),
    ),
    "512x512": (((2, 4, 8, 4, 2),) * 2, (4, 64, 64, 4), None, (270368, 1.03137, 8224, None)),
    "512x2048": (
        ((2, 4, 8, 4, 2), (4, 4, 8, 4, 4)),
        (8, 128, 128, 8),
        None,
        (1081472, 1.03137, 32896, None),
    ),
}


@pytest.mark.parametrize("name", FULL_BONDS)
def test_counts_at_full_bonds(name):
    lists, bonds, sizes, (total, ratio, auxiliary, share) = FULL_BONDS[name]
    shape = mpo.MPOShape(*lists)
    assert shape.is_full
    assert shape.bond_dims == bonds
    if sizes is not None:
        assert tuple(math.prod(core) for core in shape.core_shapes) == sizes
    assert shape.num_params == total
    assert shape.ratio == pytest.approx(ratio, abs=5e-6)
    assert shape.num_auxiliary_params == auxiliary
    assert shape.num_central_params == shape.in_features * shape.out_features
    if share is not None:
        assert 100 * auxiliary / total == pytest.approx(share, abs=5e-4)


# Lists of one size for each number of cores, and of its partner.
BY_LENGTH = {
    (768, 2): (32, 24),
    (3072, 2): (64, 48),
    (768, 3): (8, 12, 8),
    (3072, 3): (12, 16, 16),
    (1024, 3): (8, 16, 8),
    (768, 7): (2, 2, 4, 4, 3, 2, 2),
    (3072, 7): (2, 4, 4, 4, 4, 3, 2),
    (1024, 7): (2, 2, 4, 4, 4, 2, 2),
    (768, 9): (2, 2, 2, 2, 3, 2, 2, 2, 2),
    (3072, 9): (2, 2, 2, 4, 4, 3, 2, 2, 2),
    (1024, 9): (2, 2, 2, 2, 4, 2, 2, 2, 2),
}


@pytest.mark.parametrize(
    ("n", "bonds", "ratio", "share"),
    [
        (2, (1152,), 1.56250, 36.0),
        (3, (96, 128), 1.01085, 1.073),
        (7, (4, 32, 512, 288, 24, 4), 1.14696, 12.813),
        (9, (4, 16, 64, 512, 384, 64, 16, 4), 1.17731, 15.061),
    ],
)
def test_768x3072_by_number_of_cores(n, bonds, ratio, share):
    shape = mpo.MPOShape(BY_LENGTH[768, n], BY_LENGTH[3072, n])
    assert shape.bond_dims == bonds
    assert shape.ratio == pytest.approx(ratio, abs=5e-6)
    # The specification counts every core but the first of n = 2 as auxiliary.
    tolerance = 0.05 if n == 2 else 5e-4
    assert 100 * shape.num_auxiliary_params / shape.num_params == pytest.approx(
        share, abs=tolerance
    )


@pytest.mark.parametrize(
    ("size", "n", "total"),
    [
        (768, 3, 598016),
        (768, 7, 676640),
        (768, 9, 729632),
        (1024, 3, 1056768),
        (1024, 7, 1180192),
        (1024, 9, 1188384),
    ],
)
def test_square_matrices_by_number_of_cores(size, n, total):
    assert mpo.MPOShape(BY_LENGTH[size, n], BY_LENGTH[size, n]).num_params == total


# lists, {cap: total}, largest cap that saves parameters
CAPS = {
    "30000x128": (
        EMBEDDING,
        {
            409: 3508564,
            385: 3305044,
            362: 3110004,
            250: 2160244,
            240: 2075444,
            200: 1736244,
            75: 276244,
        },
        448,
    ),
    "768x3072": (
        UP,
        {308: 2047888, 274: 1825936, 223: 1493008, 192: 1290640, 82: 262800},
        355,
    ),
    "768x768 balanced": (BALANCED, {149: 412720, 131: 325168, 96: 184608, 45: 49968}, 180),
    "768x768 same": (SAME, {208: 553553, 144: 389713, 45: 50737}, 222),
    "30720x768": (TABLE, {749: 23591656}, 749),
}


@pytest.mark.parametrize("name", CAPS)
def test_totals_under_a_cap_and_break_even(name):
    lists, totals, largest = CAPS[name]
    shape = mpo.MPOShape(*lists)
    assert {cap: shape.with_bonds(cap).num_params for cap in totals} == totals
    saving = [
        cap for cap in range(1, max(shape.full_bond_dims) + 1) if shape.with_bonds(cap).ratio < 1
    ]
    assert saving == list(range(1, largest + 1))


@pytest.mark.parametrize(
    ("lists", "caps", "saved"),
    [
        (EMBEDDING, range(201, 481), 8480),
        (UP, range(193, 385), 6528),
        (SAME, range(145, 257), 2560),
        (BALANCED, [192], 6512),
        (BALANCED, [150], 5168),
    ],
)
def test_saved_numbers_per_unit_of_cap(lists, caps, saved):
    shape = mpo.MPOShape(*lists)
    for cap in caps:
        now, less = (shape.with_bonds(c).num_params for c in (cap, cap - 1))
        assert now - less == saved


def test_stored_and_free_auxiliary_numbers():
    """n = 5 is n = 3 on merged factors plus a factorisation of the two square sides."""
    assert mpo.MPOShape(*SAME).num_auxiliary_params == 86609
    merged = mpo.MPOShape((16, 4, 12), (16, 4, 12))
    assert merged.bond_dims == (256, 144)
    assert merged.num_auxiliary_params == 256**2 + 144**2 == 86272


def test_plain_svd_yardstick():
    """Ranks of plain factorisations with as many parameters as capped chains."""
    for lists, cap, total, rank in [(UP, 223, 1493008, 388.8), (BALANCED, 131, 325168, 211.7)]:
        shape = mpo.MPOShape(*lists)
        assert shape.with_bonds(cap).num_params == total
        one = mpo.MPOShape.low_rank(shape.in_features, shape.out_features, 1).num_params
        assert total / one == pytest.approx(rank, abs=0.05)


LISTS = {
    (30000, 128): EMBEDDING,
    (30522, 768): TABLE,
    (768, 768): BALANCED,
    (768, 3072): UP,
    (3072, 768): UP[::-1],
}
# Token embedding, layers and pooler are chains; the mapping, small tables and the head stay dense.
DECOMPOSED = re.compile(r"embeddings/word|layers/.*|pooler")

# (dense, MPO at full bonds, trained in lightweight fine-tuning), each with two labels.
MODELS = {
    "albert-base-v2": (11_685_122, 12_695_286, 1_187_574),
    "bert-base-uncased": (109_483_778, 118_876_706, 9_759_266),
    "distilbert-base-uncased": (66_955_010, 72_354_914, 5_704_802),
}


def _counts(config, shapes=None):
    abstract = nnx.eval_shape(lambda: models.build(config, shapes, rngs=nnx.Rngs(0)))
    counts = models.count_parameters(abstract)
    return sum(counts.values()), counts


@pytest.mark.parametrize("name", MODELS)
def test_published_models(name):
    dense, total, trained = MODELS[name]
    config = dataclasses.replace(models.PRESETS[name], num_labels=2)
    assert _counts(config)[0] == dense
    # Each further label is one column and one bias.
    assert _counts(dataclasses.replace(config, num_labels=3))[0] == dense + 769
    shapes = {
        path: mpo.MPOShape(*LISTS[size], in_features=size[0], out_features=size[1])
        for path, size in config.matrix_sizes().items()
        if DECOMPOSED.fullmatch(path)
    }
    found, by_role = _counts(config, shapes)
    assert found == total
    assert found - by_role["central"] == trained
    if name == "albert-base-v2":
        assert by_role["central"] == 11_507_712
        assert by_role["other"] == 177_410


def test_encoders_without_a_head():
    expected = {
        "albert-base-v2": 11_683_584,
        "bert-base-uncased": 109_482_240,
        "mobilebert-uncased": 24_581_888,
        "all-MiniLM-L6-v2": 22_713_216,
    }
    assert {name: _counts(models.PRESETS[name])[0] for name in expected} == expected
    # DistilBERT's encoder has no pooler.
    config = dataclasses.replace(models.PRESETS["distilbert-base-uncased"], pooling="none")
    assert _counts(config)[0] == 66_362_880
