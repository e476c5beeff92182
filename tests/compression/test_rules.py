"""Rules: what they choose, and every way to get one wrong, before any work."""

import dataclasses
import re

import pytest

from mpojax import compression, mpo
from mpojax.compression import rules as rules_lib
from tests.io import helpers
from tests.models import small, small_language

SIZES = {
    "embeddings/word": (40, 12),
    "layers/0/attention/query": (12, 12),
    "layers/1/attention/query": (12, 12),
    "layers/1/feed_forward/up": (12, 24),
}
QUERY = "layers/./attention/query"


def _resolve(*rules, **options):
    return rules_lib.resolve(rules, SIZES, options.pop("already_mpo", {}), **options)


@pytest.mark.parametrize(
    ("settings", "shape"),
    [
        ({}, mpo.MPOShape.balanced(12, 12)),
        ({"bond": 2}, mpo.MPOShape.balanced(12, 12).with_bonds(2)),
        ({"bond": 10**6}, mpo.MPOShape.balanced(12, 12)),
        ({"cores": 3, "bonds": (4, 3)}, mpo.MPOShape.balanced(12, 12, n=3).with_bonds((4, 3))),
        ({"rank": 5}, mpo.MPOShape.low_rank(12, 12, 5)),
        ({"form": "low_rank"}, mpo.MPOShape.low_rank(12, 12)),
        ({"form": "low_rank", "bond": 3}, mpo.MPOShape.low_rank(12, 12, 3)),
        ({"in_factors": [3, 4], "out_factors": [4, 3]}, mpo.MPOShape((3, 4), (4, 3))),
        (
            {"in_factors": (4, 4), "out_factors": (4, 3), "bond": 5},
            mpo.MPOShape((4, 4), (4, 3), (5,), in_features=12),
        ),
    ],
)
def test_settings_give_a_shape(settings, shape):
    targets = _resolve((QUERY, settings))
    assert [target.path for target in targets] == [
        "layers/0/attention/query",
        "layers/1/attention/query",
    ]
    assert {target.cut for target in targets} == {shape}
    assert {target.full for target in targets} == {shape.with_bonds(None)}


def test_targets_come_in_model_order_with_a_default_cap():
    targets = _resolve((".*/up", {"bond": 3}), ("embeddings/word", {}), default_bond=2)
    assert [target.path for target in targets] == ["embeddings/word", "layers/1/feed_forward/up"]
    assert max(targets[0].cut.bond_dims) == 2
    assert max(targets[1].cut.bond_dims) == 3


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([], "must be a non-empty list"),
        (".*", "must be a non-empty list"),
        ([".*"], r"rule '\.\*' must be a pair"),
        ([("(", {})], r"rule '\(' is not a regular expression"),
        ([(3, {})], "rule 3 is not a regular expression"),
        ([(".*", 64)], "must be a mapping of settings, not 64"),
        (
            [(".*", {"bonds_": 3, "Rank": 1})],
            r"unknown 'bonds_'.*; unknown 'Rank'.*known: bond, bonds",
        ),
        (
            [("query", {})],
            r"'query' matches no matrix.*embeddings/word, layers/<i>/attention/query",
        ),
        ([(".*/query", {}), ("layers/1/.*", {})], r"both match layers/1/attention/query"),
        ([(".*", {"bond": 0})], "bond=0 must be an integer of at least 1"),
        ([(".*", {"bond": 2.5})], "bond=2.5 must be an integer"),
        ([(".*", {"rank": True})], "rank=True must be an integer"),
        ([(".*", {"bonds": "4,4"})], "bonds='4,4' must be a list, each an integer"),
        ([(".*", {"bond": 2, "rank": 2})], "bond and rank exclude each other"),
        (
            [(".*", {"tolerance": 1.5})],
            "tolerance=1.5 must be a finite number of at least 0 and below 1",
        ),
        ([(".*", {"gauge": "middle"})], "gauge='middle' must be one of 'central', 'left', 'right'"),
        ([(".*", {"form": "tucker"})], "form='tucker' must be one of 'mpo', 'low_rank'"),
        ([(".*", {"in_factors": (3, 4)})], "in_factors and out_factors go together"),
        ([(".*", {"rank": 2, "cores": 5})], "low rank is always the two-core chain"),
        ([(".*", {"gauge": "identity", "bond": 2})], "exact only at full bonds; leave out bond"),
        (
            [(QUERY, {"in_factors": (2, 5), "out_factors": (4, 3)})],
            r"does not fit layers/0/attention/query \(12 x 12\): in_features=12",
        ),
        (
            [(QUERY, {"in_factors": (3, 4), "out_factors": (4, 3), "bonds": (13,)})],
            r"bond 1 is 13, outside 1\.\.12",
        ),
        ([(QUERY, {"rank": 13})], r"does not fit layers/0/attention/query .* 13, outside 1\.\.12"),
        ([(QUERY, {"in_factors": (3, 4), "out_factors": (12,)})], "must have the same length"),
        (
            [(QUERY, {"in_factors": (3, 4), "out_factors": (4, 3), "cores": 5})],
            "cores=5 contradicts factor lists of 2",
        ),
    ],
)
def test_wrong_rules_are_refused(rules, message):
    with pytest.raises(ValueError, match=message):
        rules_lib.resolve(rules, SIZES, {})


def test_matrices_in_mpo_form_are_not_decomposed_twice():
    with pytest.raises(ValueError, match="is in MPO form already; merge"):
        _resolve(
            (".*/up", {}), already_mpo={"layers/1/feed_forward/up": mpo.MPOShape((12,), (24,))}
        )


def test_nothing_happens_before_all_rules_are_checked(monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError("work before the rules were checked")

    monkeypatch.setattr(mpo, "decompose_with_spectra", fail)
    with pytest.raises(ValueError, match="matches no matrix"):
        compression.compress(helpers.model(), [(".*/query", {}), ("nothing", {})])


@pytest.mark.parametrize(
    ("config", "left"),
    [
        (small.BERT, {"embeddings/position", "embeddings/token_type", "pooler", "head"}),
        (small.MOBILEBERT, None),
        (small_language.GPT2, {"embeddings/position"}),
        (small_language.LLAMA, set()),
        (small_language.T5, set()),
        (small_language.T5_GATED, set()),
    ],
)
def test_the_default_knows_each_architecture(config, left):
    if config is small.BERT:
        config = dataclasses.replace(config, num_labels=2)
    sizes = config.matrix_sizes()
    chosen = [target.path for target in rules_lib.resolve([("all", {"bond": 2})], sizes, {})]
    assert all(path in chosen for path in sizes if "layers/" in path)
    assert left is None or set(sizes) - set(chosen) == left
    patterns = compression.named_patterns(sizes)["all"]
    assert chosen == [path for path in sizes if any(re.fullmatch(p, path) for p in patterns)]
    both = [("default", {"bond": 2}), ("embeddings/word", {"rank": 1})]
    with pytest.raises(ValueError, match="both match embeddings/word"):
        rules_lib.resolve(both, sizes, {})
