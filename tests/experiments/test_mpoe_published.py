"""What the MPOE paper prints, against its own numbers and against counts from shapes."""

import statistics

import pytest

from configs.mpoe import gpt2, t5
from experiments.tables import schema
from mpojax.methods import mpoe

TABLES = {name: schema.load(name) for name in schema.find("mpoe")}
ROWS = {(t.name, row.label): row for t in TABLES.values() for row in t.rows}


def test_averages_are_the_means_of_the_scores():
    averages = [row for row in ROWS.values() if row.average and row.scores]
    assert len(averages) == 12
    for row in averages:
        mean = statistics.fmean(map(float, row.scores.values()))
        assert mean == pytest.approx(float(row.average), abs=0.0101)


def test_printed_counts_follow_or_a_note_says_so():
    """Rounded or cut off to the printed digits."""
    follows = set()
    for (name, label), row in ROWS.items():
        if not row.config:
            continue
        digits = len(row.total.partition(".")[2])
        total = row.module.counts(row.variant)["total"] / 1e6
        cut = int(total * 10**digits) / 10**digits
        if float(row.total) == round(total, digits):
            follows.add((name, label))
            assert row.note in ("", "The number of experts is not stated; 258 M is that of 4.")
        elif float(row.total) == cut:
            assert f"{row.total} is the count cut off" in row.note
        else:
            assert row.note.startswith("#To: ")
    assert follows == {
        *(("mpoe_table1_t5", label) for label in ("T5-Base", "+MPOE", "+MPOE++")),
        *(("mpoe_table2", label) for label in ("T5-Base", "+MPOE")),
        *((name, "GPT-2") for name in ("mpoe_table1_gpt2", "mpoe_table4")),
    }


def test_notes_of_t5_hold_the_numbers_they_state():
    large = ROWS["mpoe_table1_t5", "+MPOE (large)"].note
    for number in (6, 7, 8):
        total = mpoe.counts("t5-large", f"mpoe{number}")["total"]
        assert f"{total / 1e6:.1f} M with {number}" in large
    switch, ours = t5.counts("large_switch8"), t5.counts("large_mpoe8")
    assert f"{switch['total'] / ours['total']:.2f} times" in large
    assert f"{26000 / 956:.1f} times" in large
    # Every second block: 24 of T5-Large, 12 of T5-Base.
    for size, dense, blocks, number, block in (
        ("large", t5.counts("large_dense"), 24, 128, 2 * 1024 * 4096),
        ("base", t5.counts("dense"), 12, 64, 2 * 768 * 3072),
    ):
        total = dense["total"] + blocks * (number - 1) * block
        note = ROWS["mpoe_table1_t5", f"+Switch (quoted, {size})"].note
        assert f"{number} experts in every second block" in note
        assert f"{total / 1e6:,.0f} M without routers" in note
    pair = 24 * (3072 + 768)
    assert f"{t5.counts('moe8')['total'] + pair:,}" in ROWS["mpoe_table1_t5", "+MoE"].note
    gains = {
        key: float(ROWS["mpoe_table1_t5", "+MPOE (large)"].scores[key]) - float(value)
        for key, value in ROWS["mpoe_table1_t5", "T5-Large"].scores.items()
    }
    note = TABLES["mpoe_table1_t5"].notes[0]
    for key in ("cola", "rte", "mrpc", "mnli", "qqp"):
        assert f"({gains[key]:+.2f})" in note
    assert f"{statistics.fmean(gains.values()):.2f} points" in note


def test_notes_of_gpt2_hold_the_numbers_they_state():
    dense = gpt2.counts("dense")["total"]
    switch = ROWS["mpoe_table1_gpt2", "+MoE"].note
    parallel = dense + 12 * 8 * 2 * 768 * 3072
    assert f"{parallel / 1e6:.1f} M" in switch
    more = gpt2.counts("switch8")["router"] + 12 * 8 * (768 + 3072)
    assert f"{(parallel + more) / 1e6:.1f} M" in switch
    for label, number in (("+MPOE", 8), ("+MPOE++", 16)):
        note = ROWS["mpoe_table1_gpt2", label].note
        for name in (f"mpoe{number}", f"mpoe{number}_sharedbias"):
            assert f"{gpt2.counts(name)['total']:,}" in note
        assert f"from {157.4 - dense / 1e6:.1f} to {171 - dense / 1e6:.1f} M" in note
    for cores in (3, 5, 7, 9):
        note = ROWS["mpoe_table4", f"m = {cores}"].note
        for name in (f"mpoe8_m{cores}", f"mpoe8_m{cores}_sharedbias"):
            assert f"{gpt2.counts(name)['total']:,}" in note
    unshared = ROWS["mpoe_table3", "w/o PS"].note
    assert f"{gpt2.counts('unshared8')['total'] / 1e6:.1f} M (shown" in unshared
    fewer = mpoe.counts("gpt2", "unshared8_sharedbias", router_bias=False)["total"]
    assert f"{fewer / 1e6:.1f} M with shared" in unshared
    assert f"{(dense + 12 * 768 * 3072) / 1e6:.1f} M" in unshared
    added = [t5.counts(f"mpoe{n}")["total"] - t5.counts("dense")["total"] for n in (8, 16)]
    grown = f"{added[0] / 1e6:.1f} to {added[1] / 1e6:.1f} M"
    assert grown in ROWS["mpoe_table1_gpt2", "+MPOE"].note


def test_arrows_say_which_way_is_better():
    for name in ("mpoe_table1_gpt2", "mpoe_table3", "mpoe_table4"):
        for column in TABLES[name].columns:
            lower = "perplexity" in column.metric or column.metric.startswith("self_")
            assert column.header.endswith("↓" if lower else "↑")
            assert column.scale == 1.0
    assert any("higher is less diverse" in note for note in TABLES["mpoe_table1_gpt2"].notes)


def test_test_splits_have_the_sizes_of_the_paper():
    sizes = schema.EXAMPLES["test"]
    assert (sizes["rte"], sizes["mrpc"], sizes["cola"], sizes["stsb"]) == (138, 204, 521, 750)
    assert set(sizes) == set(t5.TASKS)
