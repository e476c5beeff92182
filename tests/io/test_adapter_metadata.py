"""Damaged and hostile metadata of adapters, ours and peft's: one clear error, or the adapter."""

import copy
import json

import hypothesis
import numpy as np
import pytest
from flax import nnx
from hypothesis import strategies as st
from safetensors import numpy as safetensors_numpy

from mpojax import io, models
from tests import damaged
from tests.io.test_adapter_kinds import KINDS, MODELS, add, moved, outputs

LOADERS = {
    "ours": ("adapter.json", io.load_adapter),
    "peft": ("adapter_config.json", io.load_peft),
}
DEEP = json.loads("[" * 70 + "]" * 70)
HOSTILE = (
    *(None, True, -1, 0, 5, 10**12, 10**40, 1e308, float("nan"), float("inf"), "", "abc", "bias"),
    *("(a+)+b$", ".*" * 8, "[", "x" * 5000, [], {}, [1], [[1, 2]], {"a": 1}, {"(a+)+": 2}, DEEP),
)
NAMES = (
    *("rank", "bond", "num_cores", "offset_seed", "scale", "kind", "more", "alpha_pattern"),
    *("rank_pattern", "layers_pattern", "layers_to_transform", "exclude_modules", "use_rslora"),
)


@pytest.fixture(scope="module")
def base():
    return models.build(MODELS["bert"], rngs=nnx.Rngs(1))


@pytest.fixture(scope="module")
def saved(base, tmp_path_factory):
    """{kind of folder: (folder, content of its settings)}."""
    found = {}
    for kind, (name, _) in LOADERS.items():
        folder = tmp_path_factory.mktemp(kind)
        rule = KINDS["offset" if kind == "ours" else "low_rank"]
        save = io.save_adapter if kind == "ours" else io.save_peft
        save(moved(add(base, rule)), folder)
        found[kind] = folder, json.loads((folder / name).read_text())
    return found


def changed(content, draw):
    """The content with one entry replaced, left out or added."""
    content = copy.deepcopy(content)
    *parents, last = draw(st.sampled_from(list(damaged.places(content))[1:]))
    holder = content
    for key in parents:
        holder = holder[key]
    kind = draw(st.sampled_from(["replace", "replace", "delete", "add"]))
    if kind == "delete":
        del holder[last]
    else:
        added = kind == "add" and isinstance(holder, dict)
        holder[draw(st.sampled_from(NAMES)) if added else last] = draw(st.sampled_from(HOSTILE))
    return content


@pytest.mark.parametrize("kind", LOADERS)
@hypothesis.settings(max_examples=25, deadline=None, derandomize=True)
@hypothesis.given(data=st.data())
def test_every_change_loads_or_is_one_clear_error(base, saved, kind, data):
    folder, content = saved[kind]
    name, load = LOADERS[kind]
    (folder / name).write_text(json.dumps(changed(content, data.draw)))
    message = ""
    try:
        loaded = load(base, folder)
    except (ValueError, OSError) as error:
        message = str(error)
    else:
        assert models.adapter_arrays(loaded)
    assert len(message) < 2000


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"offset_bases": 5}, "offset_bases=5 must be a list"),
        ({"layers": None}, "layers=None must be a mapping"),
        ({"adapters": [["layers/.*", {"rank": 10**12}]]}, "rank=1000000000000 must be an integer"),
        (
            {"adapters": [["layers/.*", {"rank": 2**24}]]},
            r"settings need [\d,]+ parameters, its tensors",
        ),
        (
            {"adapters": [["(a+)+b", {"rank": 2}]]},
            "adapters: a pattern takes too many steps to match: '\\(a",
        ),
        ({"adapters": [["layers/.*", {"rnak": 2}]]}, "unknown 'rnak', did you mean 'rank'"),
        ({"adapter_scale": DEEP}, "nested too deeply"),
    ],
)
def test_what_is_wrong_is_named(base, saved, changes, message):
    folder, content = saved["ours"]
    (folder / "adapter.json").write_text(json.dumps(content | changes))
    with pytest.raises(ValueError, match=message):
        io.load_adapter(base, folder)


@pytest.mark.parametrize(
    "pattern",
    [r"(.*/)?layers/[0-9]+/.*(query|value).*", ".*layers.*attention.*(query|value).*"],
)
def test_patterns_of_some_repeats_are_read(base, saved, tmp_path, pattern):
    """As older files have them."""
    tuned = moved(add(base, (pattern, {"rank": 2})))
    io.save_adapter(tuned, tmp_path)
    content = json.loads((tmp_path / "adapter.json").read_text())
    assert [each for each, _ in content["adapters"]] == [pattern]
    np.testing.assert_array_equal(outputs(io.load_adapter(base, tmp_path)), outputs(tuned))


def test_patterns_that_take_long_to_match_are_saved_path_by_path(base, tmp_path):
    tuned = moved(
        add(base, (".*a.*t.*t.*n.*query", {"rank": 2}), (".*b.*i.*a.*s", {"kind": "bias"}))
    )
    io.save_adapter(tuned, tmp_path)
    loaded = io.load_adapter(base, tmp_path)
    np.testing.assert_array_equal(outputs(loaded), outputs(tuned))
    assert models.adapter_arrays(loaded) == models.adapter_arrays(tuned)


@pytest.mark.parametrize(
    "changes",
    [
        {"entries/indices": np.zeros(3, np.float32)},
        {"entries/indices": np.full(3, 10**6, np.int32)},
        {"entries/indices": np.zeros((3, 1), np.int32), "entries/values": np.zeros((3, 1))},
        {"entries/values": np.zeros(3, bool)},
        {"more": np.zeros(3, np.float32)},
    ],
)
def test_single_entries_that_do_not_fit(base, tmp_path, changes):
    io.save_adapter(moved(add(base, KINDS["low_rank"])), tmp_path)
    entries = {"entries/indices": np.arange(3, dtype=np.int32)}
    entries |= {"entries/values": np.ones(3, np.float32)}
    head = {n: a for n, a in models.to_arrays(base).items() if n.startswith("head/")}
    path = tmp_path / "adapter.safetensors"
    safetensors_numpy.save_file(entries | head, path)
    io.load_adapter(base, tmp_path)
    safetensors_numpy.save_file(entries | head | changes, path)
    with pytest.raises(ValueError, match="is damaged: its entries do not fit"):
        io.load_adapter(base, tmp_path)
