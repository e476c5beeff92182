"""Golden counts of MPOBERT: variants, pieces, core sizes, adapters, groups, multiply-adds.

Shapes alone: no parameter is allocated.
"""

import functools
import math

import pytest

from configs.mpobert import finetune
from experiments.tables import costs, schema
from mpojax import models
from mpojax.methods import mpobert, mpop
from mpojax.methods.mpobert import sharing
from mpojax.mpo import embedding

# {(in, out): (bonds, core sizes, total, central share in percent)}
MATRICES = {
    (768, 768): ((16, 256, 144, 9), (256, 65_536, 589_824, 20_736, 81), 676_433, 87.20),
    (768, 3072): ((16, 256, 288, 12), (256, 65_536, 2_359_296, 82_944, 144), 2_508_176, 94.06),
    (3072, 768): ((16, 256, 288, 12), (256, 65_536, 2_359_296, 82_944, 144), 2_508_176, 94.06),
    (1024, 1024): ((16, 256, 256, 16), (256, 65_536, 1_048_576, 65_536, 256), 1_180_160, 88.85),
    (1024, 4096): ((16, 256, 512, 16), (256, 65_536, 4_194_304, 262_144, 256), 4_522_496, 92.74),
    (4096, 1024): ((16, 256, 512, 16), (256, 65_536, 4_194_304, 262_144, 256), 4_522_496, 92.74),
}


@functools.cache
def counted(name, **changes):
    """Counts by role of a variant, with changes."""
    return mpop.parameter_counts(mpop.abstract(*mpobert.variant(name, **changes)))


def tuned(name, **changes):
    return counted(name, masked_lm=False, **changes)["total"]


@functools.cache
def layer_shapes(hidden):
    _, shapes = mpobert.settings(1, hidden)
    return shapes


@pytest.mark.parametrize("size", MATRICES)
def test_bonds_and_core_sizes(size):
    bonds, sizes, total, share = MATRICES[size]
    shape = mpobert.chain(*size)
    assert shape.bond_dims == bonds
    assert tuple(math.prod(core) for core in shape.core_shapes) == sizes
    assert (shape.num_params, shape.is_full) == (total, True)
    assert 100 * shape.num_central_params / total == pytest.approx(share, abs=0.005)
    assert size in [(s.in_features, s.out_features) for s in layer_shapes(min(size)).values()]


@pytest.mark.parametrize(
    ("hidden", "central", "auxiliary", "share"),
    [(768, 7_077_888, 644_196, 91.66), (1024, 12_582_912, 1_182_720, 91.41)],
)
def test_the_six_matrices_of_a_layer(hidden, central, auxiliary, share):
    shapes = layer_shapes(hidden).values()
    assert len(shapes) == 6
    assert sum(s.num_central_params for s in shapes) == central == 12 * hidden**2
    assert sum(s.num_auxiliary_params for s in shapes) == auxiliary
    assert 100 * central / (central + auxiliary) == pytest.approx(share, abs=0.005)


@pytest.mark.parametrize(
    ("name", "pretraining", "tuning"),
    [
        ("mpobert12", 19_544_162, 19_415_474),
        ("mpobert24", 46_232_754, 46_071_298),
        ("mpobert48", 74_618_034, 74_456_578),
        ("mpobert48plus", 99_810_482, 99_649_026),
        ("mpobert96", 131_388_594, 131_227_138),
        ("mpobert48_768", 42_735_218, 42_606_530),
        ("mpobert24_768", 27_274_514, 27_145_826),
        ("all_shared12", None, 12_329_318),
        ("unshared12", 97_510_754, None),
    ],
)
def test_variants(name, pretraining, tuning):
    if pretraining is not None:
        assert counted(name)["total"] == pretraining
    if tuning is not None:
        assert tuned(name) == tuning


@pytest.mark.parametrize(
    ("name", "total", "pretraining"),
    [
        ("mpobert12", 20_005_298, None),
        ("mpobert48", 77_602_306, 77_763_762),
        ("mpobert48plus", 102_794_754, None),
    ],
)
def test_variants_with_adapters(name, total, pretraining):
    assert tuned(name, adapter_rank=8) == total
    if pretraining is not None:
        assert counted(name, adapter_rank=8)["total"] == pretraining
    config, _ = mpobert.variant(name)
    adapters = counted(name, masked_lm=False, adapter_rank=8)["adapter"]
    assert adapters == config.num_layers * 8 * 4 * 2 * config.hidden_size


PLACEMENTS = {
    "QKVO": ({}, (19.415, 19.710, 20.005, 24.134)),
    "QKVO, pooler, mapping": ({"adapt_outside": True}, (19.415, 19.720, 20.025, 24.290)),
    "all six": ({"adapter_targets": sharing.TARGETS}, (19.415, 20.079, 20.743, 30.032)),
}


@pytest.mark.parametrize("name", PLACEMENTS)
def test_placements_and_ranks(name):
    fields, expected = PLACEMENTS[name]
    found = [tuned("mpobert12", adapter_rank=rank, **fields) / 1e6 for rank in (0, 4, 8, 64)]
    assert found == pytest.approx(expected, abs=5e-4)
    # Printed: 19.4, 19.7, 20.0, 24.3.
    as_printed = [f"{value:.1f}" for value in found] == ["19.4", "19.7", "20.0", "24.3"]
    assert as_printed == (name == "QKVO, pooler, mapping")


@pytest.mark.parametrize("rank", [4, 8, 64])
def test_adapters_of_fine_tuning_count_as_those_of_pre_training(rank):
    made = tuned("mpobert12", adapter_rank=rank, adapt_outside=True)
    assert finetune.counts(f"mpobert12_adapter{rank}")["total"] == made


@pytest.mark.parametrize(
    ("hidden", "pieces"),
    [
        (768, (3_906_048, 99_072, 7_077_888, 644_196, 9_984, 590_592, 128_688, 1_538)),
        (1024, (3_906_048, 132_096, 12_582_912, 1_182_720, 13_312, 1_049_600, 161_456, 2_050)),
    ],
)
def test_pieces(hidden, pieces):
    config, shapes = mpobert.settings(2, hidden)
    found = dict.fromkeys(
        ("embeddings", "mapping", "central", "auxiliary", "other", "pooler", "masked_lm", "head"), 0
    )
    for name, size in models.array_shapes(config, shapes).items():
        kind = name.split("/")[0]
        if name.startswith("embeddings/projection"):
            kind = "mapping"
        elif kind == "layers":
            core = name.rpartition("/")[2] if "/cores/" in name else ""
            kind = {"": "other", "2": "central"}.get(core, "auxiliary")
        found[kind] += math.prod(size)
    found["auxiliary"] //= 2  # of one layer
    assert tuple(found.values()) == pieces


def test_the_sum_by_hand():
    trunk = 3_906_048 + 99_072 + 7_077_888 + 12 * 644_196 + 9_984 + 590_592
    assert trunk == 19_413_936
    assert trunk + 128_688 + 1_538 == counted("mpobert12")["total"]
    assert trunk + 1_538 == tuned("mpobert12")


@pytest.mark.parametrize(("name", "more"), [("mpobert12", 109_824), ("mpobert48", 625_664)])
def test_biases_and_norms_of_every_layer(name, more):
    config, _ = mpobert.variant(name)
    assert more == (config.num_layers - 1) * 13 * config.hidden_size
    own = counted(name, bias_and_norm="per_layer")["total"]
    assert own - counted(name)["total"] == more


@pytest.mark.parametrize(
    ("num_cores", "base", "deep"),
    [
        (3, 12_821_426, 22_566_066),
        (5, 19_544_162, 74_618_034),
        (7, 24_302_258, 93_649_074),
        (9, 28_564_658, 95_860_914),
    ],
)
def test_numbers_of_cores(num_cores, base, deep):
    assert counted("mpobert12", num_cores=num_cores)["total"] == base
    assert counted("mpobert48", num_cores=num_cores)["total"] == deep


def test_groups_multiply_central_cores_and_biases_alone():
    one, three = counted("mpobert48"), counted("mpobert48plus")
    assert three["central"] == 3 * one["central"] == 3 * 12_582_912
    assert three["auxiliary"] == one["auxiliary"] == 48 * 1_182_720
    assert three["other"] - one["other"] == 2 * 13_312
    # A block for every layer: nothing is shared.
    dense, _ = mpobert.variant("unshared12")
    assert dense.block_size == 1
    assert counted("unshared12")["central"] == 12 * counted("mpobert12")["central"]


REBUILDING = {
    768: (3_594_780_672, 3_519_661_056, 497),
    1024: (8_797_552_640, 8_608_808_960, 684),
}


@pytest.mark.parametrize("hidden", REBUILDING)
def test_multiply_adds_of_rebuilding(hidden):
    chain, best, tokens = REBUILDING[hidden]
    shapes = layer_shapes(hidden).values()
    assert sum(costs.chain_multiply_adds(shape) for shape in shapes) == chain
    assert sum(embedding.rebuild_multiply_adds(shape) for shape in shapes) == best
    dense = sum(shape.in_features * shape.out_features for shape in shapes)
    assert dense == 12 * hidden**2
    assert round(best / dense) == tokens
    note = " ".join(schema.load("mpobert_table7").notes)
    assert f"{tokens} at H = {hidden}" in note.replace(" tokens", "")


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((768, 768), 237_164_800),
        ((768, 3072), 1_285_500_928),
        ((3072, 768), 1_285_500_928),
        ((1024, 1024), 538_968_064),
        ((1024, 4096), 3_226_468_352),
        ((4096, 1024), 3_226_468_352),
    ],
)
def test_multiply_adds_of_rebuilding_one_matrix(size, expected):
    assert embedding.rebuild_multiply_adds(mpobert.chain(*size)) == expected


def test_share_of_rebuilding_in_a_forward_pass():
    for hidden, tokens, percent in ((768, 1024, 49), (768, 4096, 12), (1024, 1024, 67)):
        assert round(100 * REBUILDING[hidden][2] / tokens) == percent
    assert round(100 * REBUILDING[1024][2] / 4096) == 17
    assert 48 * REBUILDING[768][1] / 1e9 == pytest.approx(168.9, abs=0.05)


def test_trunk_of_48_layers():
    """Cores, biases and norms of 48 layers of width 768, against dense ones of their own."""
    counts = counted("mpobert48_768")
    shared = counts["central"] + counts["auxiliary"] + 9_984
    dense = 48 * (12 * 768**2 + 9_984)
    assert (shared, dense) == (38_009_280, 340_217_856)
    assert dense / shared == pytest.approx(8.95, abs=0.005)


def test_a_group_has_one_central_core_for_each_matrix():
    config, shapes = mpobert.variant("mpobert48plus")
    arrays = models.array_shapes(config, shapes)
    names = [name for name in arrays if name.endswith("query/cores/2")]
    assert names == [f"layers/{layer}/attention/query/cores/2" for layer in (0, 16, 32)]
    assert sum(name.endswith("query/cores/1") for name in arrays) == 48
