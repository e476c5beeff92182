"""Plans: pure, printable, hashable, and right in the clear cases."""

import pytest

from mpojax import mpo

SQUARE = mpo.MPOShape((3, 4, 4, 4, 4), (4, 4, 4, 4, 3))
UP = mpo.MPOShape((3, 4, 4, 4, 4), (4, 4, 8, 6, 4))


@pytest.mark.parametrize("shape", [SQUARE, UP], ids=["768x768", "768x3072"])
@pytest.mark.parametrize("machine", ["cpu", "gpu", "tpu", "v5e", "v6e", "h200"])
@pytest.mark.parametrize("training", [True, False])
def test_many_tokens_rebuild(shape, machine, training):
    # At bonds of about 10 and less a contraction needs fewer multiply-adds: either may win there.
    for cap in (16, 32, 128, 10**6):
        plan = mpo.plan(shape.with_bonds(cap), tokens=4096, training=training, machine=machine)
        assert plan.strategy == "rebuild"


@pytest.mark.parametrize("shape", [SQUARE, UP], ids=["768x768", "768x3072"])
@pytest.mark.parametrize(
    "options", [{"training": True}, {"training": False}, {"training": False, "prepared": True}]
)
def test_one_token_with_small_bonds_never_rebuilds(shape, options):
    plan = mpo.plan(shape.with_bonds(8), tokens=1, machine="cpu", **options)
    assert plan.strategy != "rebuild"


def test_plan_is_cached_pure_and_hashable():
    one = mpo.plan(SQUARE.with_bonds(16), tokens=32)
    again = mpo.plan(mpo.MPOShape((3, 4, 4, 4, 4), (4, 4, 4, 4, 3)).with_bonds(16), tokens=32)
    assert one is again
    assert {one: 1}[again] == 1
    assert one != mpo.plan(SQUARE.with_bonds(16), tokens=33)


def test_plan_lists_every_strategy_and_prints_it():
    plan = mpo.plan(SQUARE.with_bonds(16), tokens=32)
    text = str(plan)
    for strategy in mpo.STRATEGIES:
        assert text.count(strategy) == 1
    assert [cost.strategy for cost in plan.costs] == list(mpo.STRATEGIES)
    marked = [line for line in text.splitlines() if line.startswith("*")]
    assert len(marked) == 1
    assert plan.strategy in marked[0]
    for fact in ("768 x 768", "32 tokens", "training"):
        assert fact in text


def test_chosen_is_the_cheapest():
    for tokens in (1, 8, 64, 512):
        for cap in (2, 8, 64):
            plan = mpo.plan(SQUARE.with_bonds(cap), tokens=tokens)
            assert plan.chosen.seconds == min(cost.seconds for cost in plan.costs)
            assert plan.chosen in plan.costs


@pytest.mark.parametrize("cap", [4, 64, 10**6])
def test_only_the_input_is_saved(cap):
    for cost in mpo.plan(UP.with_bonds(cap), tokens=10).costs:
        assert cost.saved == 10 * 768 * 4
    for cost in mpo.plan(UP.with_bonds(cap), tokens=10, training=False).costs:
        assert cost.saved == 0


def test_prepared_plans_do_not_pay_for_merging():
    for strategy in mpo.STRATEGIES:
        options = {"tokens": 1, "training": False, "strategy": strategy}
        paid = mpo.plan(SQUARE, **options).chosen.flops
        free = mpo.plan(SQUARE, prepared=True, **options).chosen.flops
        assert free < paid or strategy.startswith("chain")
    rebuilt = mpo.plan(SQUARE, tokens=7, training=False, prepared=True, strategy="rebuild").chosen
    assert rebuilt.flops == 2 * 7 * 768 * 768


@pytest.mark.parametrize("strategy", mpo.STRATEGIES)
def test_forced_strategy(strategy):
    assert mpo.plan(SQUARE, tokens=4096, strategy=strategy).strategy == strategy


def test_bytes_follow_from_dtypes_and_lanes():
    options = {"tokens": 4096, "training": False, "prepared": True, "strategy": "rebuild"}
    size = 4096 * 768 + 768 * 3072 + 4096 * 3072

    def moved(machine, dtype):
        return mpo.plan(UP, machine=machine, dtype=dtype, **options).chosen.bytes

    assert [moved("h100", dtype) for dtype in ("float32", "bfloat16")] == [4 * size, 2 * size]
    assert moved("cpu", "bfloat16") == 4 * size  # XLA computes in float32 there
    assert moved("v5e", "bfloat16") == 2 * size  # whole lanes
    # Products with 24 columns pay for 128 of them.
    narrow = mpo.MPOShape.low_rank(768, 24, 24)
    paid = mpo.plan(narrow, tokens=128, training=False, machine="v5e", strategy="low_rank").chosen
    assert paid.bytes == 4 * (128 * 768 + 768 * 128 + 3 * 128 * 128 + 24 * 128)


def test_custom_machine_changes_the_choice():
    slow_memory = mpo.Machine(flops=1e15, bandwidth=1e9, transpose_bandwidth=1e7, overhead=0.0)
    assert mpo.plan(SQUARE.with_bonds(16), tokens=64, machine=slow_memory).chosen.seconds > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokens": 0}, r"tokens=0 must be an integer of at least 1"),
        ({"tokens": 1, "strategy": "magic"}, r"strategy='magic' must be one of 'rebuild'"),
        ({"tokens": 1, "machine": "abacus"}, r"machine='abacus' must be one of 'cpu'"),
        ({"tokens": 1, "training": True, "prepared": True}, r"pass training=False"),
    ],
)
def test_bad_requests(options, message):
    with pytest.raises(ValueError, match=message):
        mpo.plan(SQUARE, **options)


def test_two_groups_need_two_cores():
    with pytest.raises(ValueError, match="'two_groups' is not for this chain"):
        mpo.plan(mpo.MPOShape((6,), (4,)), tokens=1, strategy="two_groups")


@pytest.mark.parametrize("tokens", [1, 64, 4096])
@pytest.mark.parametrize("training", [True, False])
def test_what_runs_of_low_rank_is_in_the_table(tokens, training):
    low_rank = mpo.MPOShape.low_rank(576, 1536, 200)
    pivoted = mpo.MPOShape.low_rank(576, 1536, 200, pivoted=True)
    for shape, name in ((low_rank, "low_rank"), (pivoted, "pivoted")):
        plan = mpo.plan(shape, tokens=tokens, training=training, machine="cpu")
        assert plan.strategy == name
        assert f"* {name}" in str(plan)
        # a token's products: 2 r (in + out), or r^2 fewer
        inner = 200 * (576 + 1536 - 200 * shape.pivoted)
        assert plan.chosen.flops == 2 * tokens * inner * (3 if training else 1)
        assert plan.chosen.saved == (4 * tokens * (576 + 200) if training else 0)
    assert mpo.plan(pivoted, tokens=tokens, strategy="rebuild").strategy == "rebuild"
    with pytest.raises(ValueError, match="'pivoted' is not for this chain; for it there are low_"):
        mpo.plan(low_rank, tokens=tokens, strategy="pivoted")
