"""Golden counts of MPOE: factor lists, core sizes, T5 and GPT-2 with every kind of experts.

Shapes alone: no parameter is allocated.
"""

import functools
import math

import pytest

from mpojax import compression, models, mpo
from mpojax.methods import mpoe

BASE, LARGE = 184_720, 328_192  # numbers in the auxiliary cores of one matrix of one expert
# {(in, out): (in factors, out factors, bonds, core sizes)}
MATRICES = {
    (768, 3072): (
        *((3, 4, 4, 4, 4), (4, 4, 8, 6, 4), (12, 192, 384, 16)),
        (144, 36_864, 2_359_296, 147_456, 256),
    ),
    (3072, 768): (
        *((4, 4, 8, 6, 4), (3, 4, 4, 4, 4), (12, 192, 384, 16)),
        (144, 36_864, 2_359_296, 147_456, 256),
    ),
    (1024, 4096): (
        *((4, 4, 4, 4, 4), (4, 4, 8, 8, 4), (16, 256, 512, 16)),
        (256, 65_536, 4_194_304, 262_144, 256),
    ),
    (4096, 1024): (
        *((4, 4, 8, 8, 4), (4, 4, 4, 4, 4), (16, 256, 512, 16)),
        (256, 65_536, 4_194_304, 262_144, 256),
    ),
}
SEPARABLE = {
    (768, 3072): (
        *((1, 1, 2, 24, 16), (12, 16, 16, 1, 1), (12, 192, 384, 16)),
        (144, 36_864, 2_359_296, 147_456, 256),
    ),
    (3072, 768): (
        *((1, 1, 16, 16, 12), (16, 24, 2, 1, 1), (16, 384, 192, 12)),
        (256, 147_456, 2_359_296, 36_864, 144),
    ),
}
# {architecture: (P, feed-forward layers, hidden, intermediate, a, biases)}
DENSE = {
    "t5-base": (222_903_552, 24, 768, 3072, BASE, False),
    "t5-large": (737_668_096, 48, 1024, 4096, LARGE, False),
    "gpt2": (124_439_808, 12, 768, 3072, BASE, True),
}


@functools.cache
def counted(architecture, variant, **changes):
    return mpoe.counts(architecture, variant, **changes)


def total(architecture, variant, **changes):
    return counted(architecture, variant, **changes)["total"]


def router(architecture, variant):
    return counted(architecture, variant)["router"]


@functools.cache
def shapes(architecture, variant):
    """The two chains of the layers, which all have the same."""
    _, found = mpoe.planned(architecture, variant)
    distinct = {(s.in_features, s.out_features): s for s in found.values()}
    assert len(found) == 2 * DENSE[architecture][1]
    return distinct


def check_shape(shape, expected):
    ins, outs, bonds, sizes = expected
    assert (shape.in_factors, shape.out_factors, shape.bond_dims) == (ins, outs, bonds)
    assert tuple(math.prod(core) for core in shape.core_shapes) == sizes
    assert (shape.central, shape.is_full) == (2, True)
    assert shape.num_central_params == shape.in_features * shape.out_features
    assert shape.num_auxiliary_params == sum(sizes) - sizes[2]


@pytest.mark.parametrize("size", MATRICES)
def test_core_shapes_and_sizes(size):
    architectures = ("t5-large",) if 1024 in size else ("t5-base", "gpt2")
    for architecture in architectures:
        shape = shapes(architecture, "mpoe8")[size]
        check_shape(shape, MATRICES[size])
        assert shape.num_auxiliary_params == DENSE[architecture][4]
        # One chain alone is larger than its matrix.
        assert round(shape.ratio, 3) == 1.078


@pytest.mark.parametrize("size", SEPARABLE)
def test_separable_lists_have_the_same_counts(size):
    check_shape(shapes("t5-base", "mpoe8_separable")[size], SEPARABLE[size])
    assert total("t5-base", "mpoe8_separable") == total("t5-base", "mpoe8")


def test_square_groups_hold_fewer_free_numbers_than_their_cores():
    """W = L C R with L of 192 x 192 and R of 384 x 384: the outer bonds are pure gauge."""
    shape = shapes("t5-base", "mpoe8")[768, 3072]
    left, central, right = shape.core_shapes[:2], shape.core_shapes[2], shape.core_shapes[3:]
    square = [math.prod(core[1] * core[2] for core in part) for part in (left, right)]
    assert square == [192, 384] == [central[0], central[3]]
    assert sum(n * n for n in square) == 184_320 < shape.num_auxiliary_params


def test_arrays_have_a_central_core_once_and_auxiliary_cores_for_every_expert():
    config, chains = mpoe.planned("t5-base", "mpoe8")
    arrays = models.array_shapes(config, chains)
    block = "decoder/layers/11/feed_forward"
    cores = chains[f"{block}/up"].core_shapes
    for index, core in enumerate(cores):
        expected = core if index == 2 else (8, *core)
        assert arrays[f"{block}/up/cores/{index}"] == expected
    assert arrays[f"{block}/router/kernel"] == (768, 8)
    assert arrays[f"{block}/router/bias"] == (8,)
    assert sum(name.endswith("/cores/2") for name in arrays) == 48
    # Ten cores, and the router.
    assert sum(name.startswith(f"{block}/") for name in arrays) == 12


@pytest.mark.parametrize("architecture", DENSE)
def test_dense_models(architecture):
    assert total(architecture, "dense") == DENSE[architecture][0]
    assert router(architecture, "dense") == 0


def test_other_presets():
    assert total("gpt2-medium", "dense") == 354_823_168
    assert total("SmolLM2-135M", "dense") == 134_515_008


# (architecture, experts): (router, Switch, MPOE, Switch / MPOE); GPT-2 with biases for each expert.
EXPERTS = {
    ("t5-base", 1): (18_456, 222_922_008, 231_788_568, 0.96),
    ("t5-base", 4): (73_824, 562_716_000, 258_443_616, 2.18),
    ("t5-base", 8): (147_648, 1_015_774_656, 293_983_680, 3.46),
    ("t5-base", 16): (295_296, 1_921_891_968, 365_063_808, 5.26),
    ("t5-base", 64): (1_181_184, 7_358_595_840, 791_544_576, 9.30),
    ("t5-large", 8): (393_600, 3_556_633_984, 990_113_152, 3.59),
    ("t5-large", 16): (787_200, 6_778_253_056, 1_242_558_208, 5.46),
    ("gpt2", 8): (73_824, 521_197_920, 160_302_432, 3.25),
    ("gpt2", 16): (147_648, 974_625_216, 196_211_136, 4.97),
}


@pytest.mark.parametrize(("architecture", "number"), EXPERTS)
def test_switch_and_mpoe(architecture, number):
    routers, switch, ours, ratio = EXPERTS[architecture, number]
    assert router(architecture, f"mpoe{number}") == router(architecture, f"switch{number}")
    assert router(architecture, f"mpoe{number}") == routers
    assert total(architecture, f"switch{number}") == switch
    assert total(architecture, f"mpoe{number}") == ours
    assert round(switch / ours, 2) == ratio


@pytest.mark.parametrize(("number", "expected"), [(8, 159_979_872), (16, 195_519_936)])
def test_gpt2_with_biases_that_experts_share(number, expected):
    assert total("gpt2", f"mpoe{number}_sharedbias") == expected
    own = total("gpt2", f"mpoe{number}")
    assert own - expected == 12 * (number - 1) * (3072 + 768)


@pytest.mark.parametrize(("architecture", "number"), EXPERTS)
def test_formulas(architecture, number):
    """Section 9 of the golden counts: what P, a, c and F give, against the model's arrays."""
    dense, layers, hidden, inner, a, has_bias = DENSE[architecture]
    c, block = hidden * inner, 2 * hidden * inner
    routers = hidden * number + number
    biases = layers * (number - 1) * (inner + hidden) if has_bias else 0
    for kind, inside in (
        ("switch", (number - 1) * block + routers),
        ("mpoe", 2 * number * a + routers),
        ("unshared", 2 * number * (c + a) - block + routers),
    ):
        assert total(architecture, f"{kind}{number}") == dense + layers * inside + biases


def test_unshared_experts():
    assert total("t5-base", "unshared8") == 1_086_707_136
    assert total("gpt2", "unshared8_sharedbias", router_bias=False) == 556_341_504
    own = counted("t5-base", "unshared8")["central"]
    assert own == 8 * counted("t5-base", "mpoe8")["central"]


def test_two_experts_for_a_token():
    """The authors' layer: no bias in the router, and one pair of biases, which T5 has not."""
    pair = 24 * (3072 + 768)
    assert total("t5-base", "moe8") + pair == 1_015_866_624
    assert total("t5-base", "mpoe8", router="top2", router_bias=False) + pair == 294_075_648
    assert router("t5-base", "moe8") == 24 * 768 * 8


@pytest.mark.parametrize(
    ("number", "expected"), [(1, 1.0783), (8, 0.2033), (16, 0.1408), (10_000, 0.0784)]
)
def test_share_of_the_feed_forward_weights(number, expected):
    """MPOE / Switch, without routers: 1 / n + a / c, never below a / c = .0783."""
    shape = shapes("t5-base", "mpoe8")[768, 3072]
    central, auxiliary = shape.num_central_params, shape.num_auxiliary_params
    ratio = (central + number * auxiliary) / (number * shape.num_dense_params)
    assert ratio == pytest.approx(expected, abs=5e-5)
    assert ratio == pytest.approx(1 / number + auxiliary / central)
    assert ratio > auxiliary / central == pytest.approx(0.07829, abs=5e-6)


def test_share_as_the_paper_counts_it():
    """Its denominator is n chains, and its gamma central / auxiliary is given as about 12."""

    def ratio(gamma, number=8):
        return (number + gamma) / (number * (gamma + 1))

    gammas = {
        architecture: s.num_central_params / s.num_auxiliary_params
        for architecture in ("t5-base", "t5-large")
        for s in shapes(architecture, "mpoe8").values()
    }
    assert {name: round(gamma, 2) for name, gamma in gammas.items()} == {
        "t5-base": 12.77,
        "t5-large": 12.78,
    }
    assert ratio(12) == pytest.approx(0.1923, abs=5e-5)
    assert ratio(gammas["t5-base"]) == pytest.approx(0.1885, abs=5e-5)
    share, longer = ratio(gammas["t5-base"]), 1 + 1 / gammas["t5-base"]
    assert share * longer == pytest.approx(0.2033, abs=5e-5)


@pytest.mark.parametrize(
    ("cores", "shared", "own"),
    [
        (3, 129_428_832, 129_751_392),
        (5, 159_979_872, 160_302_432),
        (7, 191_083_872, 191_406_432),
        (9, 204_834_144, 205_156_704),
    ],
)
def test_numbers_of_cores(cores, shared, own):
    assert total("gpt2", f"mpoe8_m{cores}_sharedbias") == shared
    assert total("gpt2", f"mpoe8_m{cores}") == own
    assert (total("gpt2", "mpoe8") == own) == (cores == 5)


def test_memory_of_a_layer():
    """Megabytes in float32 of the matrices of one base layer: MPOE, Switch."""
    layer = shapes("t5-base", "mpoe8").values()
    central = sum(s.num_central_params for s in layer)
    auxiliary = sum(s.num_auxiliary_params for s in layer)
    for number, chains, switch in ((8, 30.7, 151), (16, 42.5, 302), (64, 113.5, 1208)):
        assert 4e-6 * (central + number * auxiliary) == pytest.approx(chains, abs=0.05)
        assert round(4e-6 * number * central) == switch
    assert central + 64 * auxiliary == pytest.approx(28.4e6, abs=0.05e6)


def test_names_of_variants():
    for name in mpoe.VARIANTS:
        for _, fields in mpoe.rules(name):
            rule = compression.ExpertRule(**fields)
            assert str(rule.number) in name
            assert (rule.form == "switch") == name.startswith(("switch", "moe"))
    assert mpoe.rules("dense") == []
    assert mpoe.fields("mpoe8_m7_nomask") == {
        "form": "mpoe",
        "router": "switch",
        "number": 8,
        "cores": 7,
    }
    changed = mpoe.rules("switch64", blocks="layers/1/feed_forward", capacity_factor=1.25)
    assert changed[0][0] == "layers/1/feed_forward"
    assert changed[0][1]["capacity_factor"] == 1.25


@pytest.mark.parametrize("name", ["mpoe", "mpoe0", "moe8x", "mpoe8_m4", "mpoe8_", "", "dense8"])
def test_unknown_variants(name):
    with pytest.raises(ValueError, match="must be dense, or one of mpoe, unshared, switch, moe"):
        mpoe.fields(name)


def test_unknown_architecture():
    with pytest.raises(ValueError, match=r"unknown architecture 't5-small'; there are .*t5-base"):
        mpoe.counts("t5-small", "mpoe8")


def test_rates_of_the_mask():
    rates = {n: mpoe.mask_rate(f"mpoe{n}") for n in (1, 4, 8, 16)}
    assert rates == {1: 0.0, 4: 0.75, 8: 0.875, 16: 0.9375}
    for name in ("dense", "switch8", "unshared8", "moe8", "mpoe8_nomask", "mpoe8_m7_nomask"):
        assert mpoe.mask_rate(name) is None


def test_one_matrix_with_other_bonds_would_be_the_printed_size_of_t5_large():
    """956 M: bonds 32, 128, 512, 64, which nothing in the paper or its code points to."""
    lists = (4, 2, 8, 2, 8), (8, 2, 8, 4, 8)
    factors = {"up": lists, "down": lists[::-1]}
    assert mpo.MPOShape(*lists).bond_dims == (32, 128, 512, 64)
    assert mpoe.counts("t5-large", "mpoe8", factors=factors)["total"] == 955_903_360
