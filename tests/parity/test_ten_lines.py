"""The example of the README, word for word, on the real MiniLM."""

import pathlib

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from mpojax import models
from tests.parity import reference

README = pathlib.Path(__file__).parents[2] / "README.md"


def example() -> str:
    """The first Python block of the README."""
    return README.read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]


def test_the_example_runs(minilm_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "path/to/a/bert").mkdir(parents=True)
    (tmp_path / "path/to/a/bert/folder").symlink_to(minilm_dir)
    code = example()
    assert len([line for line in code.splitlines() if line.strip()]) <= 12
    names = {}
    exec(code, names)

    model, small, report = names["model"], names["small"], names["report"]
    assert len(report.rows) == 36
    assert all(max(row.bonds) == 64 for row in report.rows)
    assert all(0 < row.relative_error <= row.error_bound for row in report.rows)
    assert report.dense_parameters == sum(models.count_parameters(model).values()) == 22_713_216
    assert report.parameters == sum(models.count_parameters(small).values())
    table = report.table()
    assert max(map(len, table.splitlines())) <= 120
    assert table.count("layers/") == 36

    ids, mask = names["batch"]["input_ids"], names["batch"]["attention_mask"]
    real = mask == 1
    hidden = np.asarray(names["hidden"])
    assert hidden.shape == (*real.shape, 384)
    theirs = reference.load("dense")
    expected = reference.outputs(theirs, ids, mask).last_hidden_state.numpy()
    dense = np.asarray(names["dense"](ids, mask))
    np.testing.assert_allclose(dense[real], expected[real], rtol=0, atol=1e-5)
    np.testing.assert_allclose(hidden[real], expected[real], rtol=0, atol=2e-5)
    # Only the named matrices have changed.
    before, merged = models.to_arrays(model), models.to_arrays(names["dense"])
    changed = {name for name in before if not np.array_equal(before[name], merged[name])}
    assert changed == {f"{row.path}/kernel" for row in report.rows}
    assert (tmp_path / "dense" / "tokenizer.json").is_file()
