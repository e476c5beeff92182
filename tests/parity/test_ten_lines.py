"""The example of the README, word for word, on the real MiniLM."""

import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import tokenizers

from mpojax import models
from tests.parity import reference

EXAMPLE = """
import jax.numpy as jnp
from mpojax import interop, mpo

model = interop.load_pretrained("path/or/hub-id")          # any supported architecture, weights checked name by name
small, report = interop.compress(model, [(".*/(query|key|value|out|up|down)", dict(bond=64))])   # report: rows, .table(), .plot(path)
interop.save_pretrained(small, "folder")                    # safetensors + config.json; load_pretrained reads it back
hidden = small(input_ids, attention_mask=mask)              # last hidden states or logits, as the architecture gives
dense = interop.merge(small)                                # exact dense model again
interop.export_huggingface(dense, "folder")                 # transformers.AutoModel.from_pretrained("folder") works
"""  # noqa: E501


def test_the_example_runs(minilm_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "path" / "or").mkdir(parents=True)
    (tmp_path / "path" / "or" / "hub-id").symlink_to(minilm_dir)
    tokenizer = tokenizers.Tokenizer.from_file(str(minilm_dir / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.enable_padding()
    encoded = tokenizer.encode_batch(["A clever film .", "Not what I had hoped for, sadly."])
    names = {
        "input_ids": jnp.asarray([e.ids for e in encoded]),
        "mask": jnp.asarray([e.attention_mask for e in encoded]),
    }
    head, tail = EXAMPLE.split("hidden = ")
    exec(head, names)
    saved = names["interop"].load_pretrained("folder")
    exec("hidden = " + tail, names)

    model, small, report = names["model"], names["small"], names["report"]
    assert len(report.rows) == 36
    assert all(max(row.bonds) == 64 for row in report.rows)
    assert all(0 < row.relative_error <= row.error_bound for row in report.rows)
    assert report.dense_parameters == sum(models.count_parameters(model).values()) == 22_713_216
    assert report.parameters == sum(models.count_parameters(small).values())
    table = report.table()
    assert max(map(len, table.splitlines())) <= 120
    assert table.count("layers/") == 36

    arrays, again = models.to_arrays(small), models.to_arrays(saved)
    assert saved.shapes == small.shapes
    assert set(arrays) == set(again)
    assert all(np.array_equal(arrays[name], again[name]) for name in arrays)

    real = np.asarray(names["mask"]) == 1
    hidden = np.asarray(names["hidden"])
    assert hidden.shape == (*real.shape, 384)
    theirs = reference.load("folder")
    expected = reference.outputs(theirs, names["input_ids"], names["mask"]).last_hidden_state
    dense = np.asarray(names["dense"](names["input_ids"], names["mask"]))
    np.testing.assert_allclose(dense[real], expected.numpy()[real], rtol=0, atol=1e-5)
    np.testing.assert_allclose(hidden[real], expected.numpy()[real], rtol=0, atol=2e-5)
    # Only the named matrices have changed.
    before, merged = models.to_arrays(model), models.to_arrays(names["dense"])
    changed = {name for name in before if not np.array_equal(before[name], merged[name])}
    assert changed == {f"{row.path}/kernel" for row in report.rows}
