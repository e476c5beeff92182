"""Axes of a sweep: expansion, names, and mistakes that are found before anything runs."""

import pytest

from configs.sweeps import bond_dims, mpop_minilm
from experiments import cells, sweep, train
from tests.experiments import toy
from tests.experiments.toy import toy_config


@pytest.fixture(autouse=True)
def runner(monkeypatch):
    toy.install(monkeypatch)


def test_expansion_order_names_and_values():
    made = cells.expand(toy_config())
    assert [cell.name for cell in made[:3]] == [
        "variant=dense,optimizer.learning_rate=0.001,seed=0",
        "variant=dense,optimizer.learning_rate=0.001,seed=1",
        "variant=dense,optimizer.learning_rate=2.8e-06,seed=0",
    ]
    assert len(made) == 8
    last = made[-1].config
    assert (last.variant, last.matrices, last.seed) == ("m", (".*",), 1)
    assert last.optimizer.learning_rate == 2.8e-6
    assert last.optimizer.warmup_steps == 0.1
    assert made[-1].values == {"variant": "mpo", "optimizer.learning_rate": 2.8e-6, "seed": 1}
    assert made[0].config.matrices == ()  # cells do not share their configs


def test_names_are_safe_short_and_different():
    labels = {"task": "a/b: c", "seed": "0"}
    assert cells.cell_name(labels) == "task=a_b_c,seed=0"
    long = [cells.cell_name({"x": "y" * 300 + end}) for end in "ab"]
    assert long[0] != long[1]
    assert max(map(len, long)) < 200
    config = toy_config()
    config.axes = (("task", ("a/b", "a:b")),)
    with pytest.raises(ValueError, match="share the folder"):
        cells.expand(config)


def test_a_comma_list_of_tasks_is_several_tasks():
    config = toy_config()
    config.tasks = ("cola,rte",)  # --config.tasks=cola,rte
    config.axes = (("task", "tasks"),)
    assert [cell.config.task for cell in cells.expand(config)] == ["cola", "rte"]


def test_skip_leaves_combinations_out():
    config = toy_config()
    config.skip = ({"variant": "dense", "seed": (1,)}, {"optimizer.learning_rate": 2.8e-6})
    assert [cell.name for cell in cells.expand(config)] == [
        "variant=dense,optimizer.learning_rate=0.001,seed=0",
        "variant=mpo,optimizer.learning_rate=0.001,seed=0",
        "variant=mpo,optimizer.learning_rate=0.001,seed=1",
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"axes": (("stesp", (1,)),)}, r"no field 'stesp'; "),
        ({"axes": (("max_lenght", (1,)),)}, r"no field 'max_lenght', did you mean 'max_length'"),
        ({"axes": (("optimizer.learning_rat", (1.0,)),)}, r"mean 'optimizer.learning_rate'"),
        ({"axes": (("v", {"a": {"tsak": "x"}}),)}, r"axis 'v', value 'a': .* mean 'task'"),
        ({"axes": (("max_length", ("long",)),)}, r"'max_length' is of type int; 'long' does not"),
        ({"axes": (("max_length", (1, True)),)}, r"is of type int; True does not fit"),
        ({"axes": (("task", (None,)),)}, r"is of type str; None does not fit"),
        ({"axes": (("bond", ("x",)),)}, r"'bond' is of type int"),
        ({"axes": (("optimizer", (3,)),)}, r"'optimizer' is of type dict; 3 does not fit"),
        ({"cell": None}, r"config.cell must be the whole config"),
        ({"axes": ()}, r"must be a non-empty tuple of pairs"),
        ({"axes": (("seed", ()),)}, r"'seed' has no values"),
        ({"axes": (("seed", (1, 1)),)}, r"names a value twice"),
        ({"axes": (("seed", "sedes"),)}, r"'sedes' must be a tuple of values or name a field"),
        ({"axes": (("seed", 3),)}, r"must be a tuple of values, or a dict"),
        ({"axes": (("v", {"a": 3}),)}, r"label 'a': 3 must be a dict"),
        ({"axes": (("seed", (1,)), ("seed", (2,)))}, r"names 'seed' twice"),
        ({"axes": (("seed", (1,)), ("v", {"a": {"seed": 2}}))}, r"both set 'seed'"),
        ({"skip": ({"varaint": "dense"},)}, r"skip names varaint.* the axes are variant: dense"),
        ({"skip": ({"variant": "no"},)}, r"skip names variant=\['no'\]"),
        ({"skip": ({"seed": (0, 1)},)}, r"no cells"),
        ({"plots": ({"x": "a", "z": "b"},)}, r"config.plots: unknown 'z'"),
        ({"plots": ({"x": "a"},)}, r"needs x and y"),
        ({"plots": ({"x": "a", "y": "b", "lines": "seed"},)}, r"lines='seed' must be one of"),
        ({"plots": ({"x": "a", "y": "b"}, {"x": "a", "y": "b"})}, r"two plots are called"),
    ],
)
def test_mistakes_are_found_before_anything_runs(tmp_path, changes, message):
    config = toy_config()
    for name, value in changes.items():
        config[name] = value
    with pytest.raises(ValueError, match=message):
        sweep.main(config, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
    assert not toy.CALLS


def test_a_table_value_replaces_the_whole_table():
    config = toy_config()
    config.lock()
    config.axes = (("optimizer", {"x": {"optimizer": {"name": "adam"}}}),)
    (cell,) = cells.expand(config)
    assert cell.config.optimizer.to_dict() == {"name": "adam"}
    assert config.cell.optimizer.learning_rate == 1e-3


def test_the_checks_of_runs_come_first(tmp_path, monkeypatch):
    def refuse(config):
        if config.variant == "m":
            raise ValueError("no such matrix")

    monkeypatch.setattr(train, "check", refuse)
    with pytest.raises(ValueError, match=r"cell variant=mpo,.*: no such matrix"):
        sweep.main(toy_config(), str(tmp_path))
    assert not toy.CALLS


def test_bond_dims_expands():
    made = cells.expand(bond_dims.get_config())
    assert len(made) == 22
    assert made[0].name == "baseline=dense,seed=0"
    assert made[1].values == {"form": "dense", "bond": None, "seed": 1}
    assert made[2].name == "form=mpo,bond=8,seed=0"
    assert made[-1].config.settings.form == "low_rank"
    smoke = cells.expand(bond_dims.get_config("sst2,smoke"))
    assert [cell.config.bond for cell in smoke] == [None, 16, 64, 16, 64]
    assert {cell.config.task for cell in smoke} == {"sst2"}
    with pytest.raises(ValueError, match="only ',smoke' is allowed"):
        bond_dims.get_config("sst2,smok")


def test_minilm_sweep_expands():
    made = cells.expand(mpop_minilm.get_config())
    assert len(made) == 60
    assert {cell.config.variant for cell in made} == {"dense", "full_lfa", "mpop", "dir", "svd"}


def test_what_is_missing_is_said_once_before_anything_runs(tmp_path):
    config = toy_config()
    with config.cell.unlocked():
        config.cell.model, config.cell.data_dir = str(tmp_path / "weights"), str(tmp_path)
    with pytest.raises(ValueError, match="inputs are missing") as caught:
        sweep.main(config, str(tmp_path / "run"))
    model, task = str(caught.value).split("\n")
    assert "8 of 8 cells: " in model
    assert str(tmp_path / "weights") in model
    assert task.startswith(f"8 of 8 cells: no folder {tmp_path / 'glue/SST-2'}")
    assert not toy.CALLS
