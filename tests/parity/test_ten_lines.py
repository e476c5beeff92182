"""Compress, save, merge and export in a few lines, on the real MiniLM."""

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from mpojax import models
from tests.parity import reference

EXAMPLE = """
import mpojax as mj

folder = "bert-folder"
model = mj.load(folder)
small, report = mj.compress(model, [mj.Rule(".*/(query|key|value|out|up|down)", bond=64)])
print(report.table())
mj.save(small, "small")
small = mj.load("small")
texts = ["A clever film.", "Not what I had hoped for."]
batch = mj.data.Tokenizer.from_folder(folder).encode(texts, max_length=16)
hidden = small(batch["input_ids"], batch["attention_mask"])
dense = mj.merge(small)
mj.save(dense, "dense", format="huggingface", tokenizer_from=folder)
"""


def test_the_example_runs(minilm_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bert-folder").symlink_to(minilm_dir)
    names = {}
    exec(EXAMPLE, names)

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
