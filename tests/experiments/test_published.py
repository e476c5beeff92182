"""Published tables as data files, and how their values are joined with ours."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.tables import results, schema, scores

KEYS, LABELS = ("rte", "mrpc"), ("dense", "mpop", "another library's")
CELLS = list(itertools.product(LABELS[:2], KEYS))
TABLE = schema.Table(
    "x",
    "X",
    "nowhere",
    columns=tuple(schema.Column(key, key.upper(), "accuracy") for key in KEYS),
    rows=(
        schema.Row("dense", "configs/mpop/albert.py:dense,{task}", {"rte": "71.1"}, total="11.6"),
        schema.Row("mpop", "configs/mpop/albert.py:mpop,{task}", dict.fromkeys(KEYS, "73.0")),
        schema.Row("another library's", "", {"mrpc": "80"}),
    ),
    run_columns=(),
)


@pytest.mark.parametrize("name", schema.names())
def test_every_file_loads_and_names_configs_that_are_there(name):
    table = schema.load(name)
    assert len({row.label for row in table.rows}) == len(table.rows) or name == "mpop_figure2"
    for row in table.rows:
        assert set(row.scores) <= {column.key for column in table.columns}
        assert not row.config or hasattr(row.module, "get_config")
        for label in row.start.values():
            assert table.row(label).config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('"a"', '"a" "b"'), "Expected newline"),
        (('scores = "1 2"', 'scores = "1 2 3"'), "zip"),
        (('scores = "1 2"', 'scores = "1 2"\nspread = "1"'), "spread"),
        (('label = "a"\n', ""), "label"),
    ],
)
def test_a_file_that_is_none_is_named(tmp_path, monkeypatch, change, message):
    text = 'title = ""\nsource = ""\n[[columns]]\ntask = "x"\nheader = ""\n'
    text += '[[columns]]\ntask = "y"\nheader = ""\n[[rows]]\nlabel = "a"\nscores = "1 2"\n'
    monkeypatch.setattr(schema, "FOLDER", tmp_path)
    schema.load.cache_clear()
    (tmp_path / "mine.toml").write_text(text, encoding="utf-8")
    assert schema.load("mine").rows[0].scores == {"x": "1", "y": "2"}
    schema.load.cache_clear()
    (tmp_path / "mine.toml").write_text(text.replace(*change), encoding="utf-8")
    with pytest.raises(ValueError, match=r"mine\.toml: .*" + message):
        schema.load("mine")
    schema.load.cache_clear()


@given(
    measured=st.dictionaries(st.sampled_from(CELLS), st.floats(0, 1)),
    seeds=st.integers(1, 5),
    total=st.integers(1, 10**12),
)
def test_joined_values_stand_in_their_own_cells(measured, seeds, total):
    """Nothing published changes, nothing measured moves, and integers stay integers."""

    def score(cell):
        if cell not in measured:
            return None
        return results.Score(measured[cell], None, seeds, total, total, None, ())

    found = {label: {key: score((label, key)) for key in KEYS} for label in LABELS[:2]}
    frame = scores.join(TABLE, found, dict.fromkeys(LABELS[:2], (total, total, "")))
    assert [*zip(frame.row, frame.task, strict=True)] == list(itertools.product(LABELS, KEYS))
    printed = [row.scores.get(key) for row in TABLE.rows for key in KEYS]
    assert [value if isinstance(value, str) else None for value in frame.published] == printed
    text = frame.to_csv(index=False)
    for record, line in zip(frame.to_dict("records"), text.splitlines()[1:], strict=True):
        cell = record["row"], record["task"]
        assert math.isnan(record["ours"]) == (cell not in measured)
        if cell in measured:
            assert record["ours"] == 100 * measured[cell]
            assert record["own_config"] is True
        assert record["seeds"] == (seeds if cell in measured else 0)
        has_counts = record["row"] != "another library's"
        assert line.split(",")[-2:] == ([str(total)] * 2 if has_counts else ["", ""])
