"""`import mpojax as mj`: the verbs, what they are, and what importing them costs."""

import copy
import importlib
import json
import pathlib
import pickle
import subprocess
import sys

import numpy as np
import pytest
from flax import nnx

import mpojax as mj
from tests import marks
from tests.io import helpers
from tests.models import small, small_language

ROOT = pathlib.Path(__file__).parents[1]
VERBS = {
    "Rule": "compression.Rule",
    "add_adapters": "compression.add_adapters",
    "add_experts": "compression.add_experts",
    "calibrate": "compression.calibrate",
    "combine": "methods.smile.combine",
    "compress": "compression.compress",
    "generate": "models.generate",
    "load": "io.load_pretrained",
    "merge": "compression.merge",
    "moefy": "methods.moefication.moefy",
    "save": "io.save_pretrained",
}
FRESH = """
import sys
import mpojax
assert set({verbs}) | {{"mpo", "io", "training"}} <= set(dir(mpojax)) and mpojax.mpo
parts = "compression data io methods models nn training".split()
late = "grain optax orbax safetensors".split() + [f"mpojax.{{part}}" for part in parts]
print([name for name in late if name in sys.modules])
"""


def test_importing_the_package_imports_the_kernels_alone():
    run = subprocess.run(
        [sys.executable, "-c", FRESH.format(verbs=list(VERBS))],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout == "[]\n"


@pytest.mark.parametrize("name", VERBS)
def test_verbs_are_the_functions_themselves(name):
    part, _, theirs = VERBS[name].rpartition(".")
    assert getattr(mj, name) is getattr(importlib.import_module(f"mpojax.{part}"), theirs)
    assert name in mj.__all__
    assert ">>> import mpojax as mj" in getattr(mj, name).__doc__


def test_the_parts_come_by_attribute_too():
    assert mj.data is importlib.import_module("mpojax.data")
    assert mj.mpo is importlib.import_module("mpojax.mpo")


def test_a_mistyped_verb_is_no_attribute():
    with pytest.raises(AttributeError, match="'mpojax' has no attribute 'compres'"):
        mj.compres  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name"):
        from mpojax import nothing_like_it  # noqa: F401


@pytest.fixture
def folder(tmp_path):
    return helpers.write(tmp_path / "bert")


def test_load_takes_every_name_of_a_folder(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    monkeypatch.syspath_prepend(str(folder.parent.parent))
    (folder.parent / "__init__.py").touch()
    for name in (folder, str(folder), "~/bert", f"package:{folder.parent.name}/bert"):
        loaded = mj.load(name)
        assert loaded.config.hidden_size == 12
        assert loaded.shapes == {}


def test_save_writes_both_formats(folder, tmp_path):
    model = mj.load(folder)
    tiny, _ = mj.compress(model, bond=2)
    mj.save(tiny, tmp_path / "own")
    assert mj.load(tmp_path / "own").shapes == tiny.shapes
    mj.save(mj.merge(tiny), tmp_path / "theirs", format="huggingface")
    content = json.loads((tmp_path / "theirs" / "config.json").read_text(encoding="utf-8"))
    assert content["model_type"] == "bert"
    assert "mpojax" not in content
    expected = mj.models.to_arrays(mj.merge(tiny))
    for name, array in mj.models.to_arrays(mj.load(tmp_path / "theirs")).items():
        np.testing.assert_array_equal(array, expected[name])
    with pytest.raises(ValueError, match=r"matrices in MPO form.*make it dense first"):
        mj.save(tiny, tmp_path / "mpo", format="huggingface")
    with pytest.raises(ValueError, match="format='gguf' must be one of 'mpojax', 'huggingface'"):
        mj.save(model, tmp_path / "gguf", format="gguf")
    assert not (tmp_path / "mpo").exists()
    assert not (tmp_path / "gguf").exists()


KINDS = small.KINDS | small_language.DECODERS | small_language.PAIRS


# Names of layers like BERT's.
LIKE_BERT = {"roberta", "electra", "mpnet", "distilbert"}


@pytest.mark.parametrize("kind", marks.slow_but(KINDS.keys() - LIKE_BERT, KINDS))
def test_compress_without_rules_takes_the_layers_of_every_architecture(kind):
    """All matrices in layers, such as `gate`; embeddings, projections and heads when asked."""
    model = small.random_model(KINDS[kind])
    sizes = model.config.matrix_sizes()
    tiny, report = mj.compress(model, bond=2)
    assert tiny.shapes == mj.compression.planned_shapes(model.config, [("layers", {})], bond=2)
    assert set(tiny.shapes) == {path for path in sizes if "layers/" in path}
    assert set(report.unmatched) == {path for path in sizes if "layers/" not in path}
    assert report.parameters < report.dense_parameters
    _, report = mj.compress(model, budget=0.9)
    assert report.parameters <= 0.9 * report.dense_parameters
    whole, _ = mj.compress(model, [mj.Rule("all", bond=2)])
    assert set(whole.shapes) - set(tiny.shapes) <= {"embeddings/word", "head"}
    assert "embeddings/word" in whole.shapes


def test_compress_without_rules_minimises_the_error_of_outputs_where_it_is_known():
    model = small.random_model(small.BERT)
    ids = np.random.default_rng(0).integers(1, 50, (16, 12))
    calibration = mj.calibrate(model, [{"input_ids": ids}])
    _, plain = mj.compress(model, [mj.Rule("layers")], bond=2, calibration=calibration)
    _, aware = mj.compress(model, bond=2, calibration=calibration)
    assert [row.path for row in plain.rows] == [row.path for row in aware.rows]
    for before, after in zip(plain.rows, aware.rows, strict=True):
        assert after.output_error < before.output_error


def test_compress_without_rules_needs_a_size():
    model = small.random_model(small.BERT)
    for call in (mj.compress, mj.compression.check_rules):
        with pytest.raises(ValueError, match=r"without rules needs a size: budget=0.6 .*bond=64"):
            call(model)


def test_a_rule_is_a_pair():
    rule = mj.Rule(".*/up", bond=3, search=True)
    assert rule == (".*/up", {"bond": 3, "search": True})
    assert repr(rule) == "Rule('.*/up', bond=3, search=True)"
    for other in (copy.deepcopy(rule), pickle.loads(pickle.dumps(rule))):
        assert type(other) is mj.Rule
        assert other == rule
    assert json.loads(json.dumps(rule)) == [".*/up", {"bond": 3, "search": True}]


def _verbs(rules):
    """Each verb that takes rules, on a model that it fits."""
    yield lambda: mj.compress(small_language.dense(small_language.GPT2), rules)
    for verb in (mj.add_adapters, mj.add_experts):
        yield lambda verb=verb: verb(
            small_language.dense(small_language.GPT2), rules, rngs=nnx.Rngs(0)
        )


@pytest.mark.parametrize(
    ("pattern", "settings"),
    [
        (".*/(query", {}),
        (3, {}),
        ("no/such/matrix", {"bond": 2}),
        (".*", {"bnod": 2}),
        (".*", {"Rank": 2, "numbr": 4, "pattern": 3}),
        (".*", {"bond": 0, "number": 2}),
    ],
)
def test_a_mistake_in_a_rule_or_a_pair_is_the_same_error(pattern, settings):
    as_pair, as_rule = _verbs([(pattern, settings)]), _verbs([mj.Rule(pattern, **settings)])
    for pair, rule in zip(as_pair, as_rule, strict=True):
        with pytest.raises(ValueError) as expected:
            pair()
        with pytest.raises(ValueError) as found:
            rule()
        assert str(found.value) == str(expected.value)
        assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("kind", "mistyped", "meant"),
    [
        (mj.compression.MatrixRule, "data_awere", "data_aware"),
        (mj.compression.AdapterRule, "rnak", "rank"),
        (mj.compression.ExpertRule, "capacity", "capacity_factor"),
    ],
)
def test_unknown_settings_get_the_nearest_one(kind, mistyped, meant):
    message = f"unknown '{mistyped}', did you mean '{meant}'"
    with pytest.raises(ValueError, match=message):
        mj.compression.parse_rule(mj.Rule(".*", **{mistyped: 3}), kind)


@pytest.mark.parametrize("rules", [None, 5, mj.Rule(".*", rank=2), {".*": {"rank": 2}}, ".*", []])
def test_no_list_of_rules_is_one_line(rules):
    compress, *others = _verbs(rules)
    for verb in others if rules is None else [compress, *others]:
        with pytest.raises(ValueError, match=r"must be a non-empty list of \(pattern, set"):
            verb()


@pytest.mark.parametrize("rules", [[5], [(".*",)], [None], (".*", {"rank": 2})])
def test_what_is_no_pair_is_one_line(rules):
    for verb in _verbs(rules):
        with pytest.raises(ValueError, match=r"must be a pair \(pattern, settings\)"):
            verb()
