"""Sizes of updates, layer by layer."""

import jax
import numpy as np
import pytest

from mpojax import training
from mpojax.training import metrics as metrics_lib
from mpojax.training import state as state_lib
from mpojax.training import update_statistics
from tests.training import helpers, small_encoder


class Keep(training.Hook):
    """All parameters after every step, on the host."""

    order = 60

    def __init__(self):
        self.states = {}

    def begin(self, loop):
        self.after_step(loop)

    def after_step(self, loop):
        self.states[loop.step] = {
            path: np.asarray(x, np.float64)
            for path, x in state_lib.flatten(loop.state.trainable).items()
        }


def run(folder=None, *, every=2, steps=5, hooks=(), **more):
    roles = training.roles(small_encoder.model("shared"))
    hook = training.UpdateStatistics(roles, every)
    return small_encoder.run("shared", folder, steps=steps, hooks=[hook, *hooks], **more)


def norms(states, step, select):
    """(ratio, norm) of the selected slices at one step."""
    old, new = states[step - 1], states[step]
    change = np.sqrt(sum(np.sum((select(p, new[p]) - select(p, old[p])) ** 2) for p in old))
    size = np.sqrt(sum(np.sum(select(p, old[p]) ** 2) for p in old))
    return change / size, size


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(folder, result, states) of a run that is measured at every step."""
    folder, keep = tmp_path_factory.mktemp("whole") / "run", Keep()
    copy = helpers.CopyFolder(3, folder, folder.parent / "killed")
    hooks = [keep, training.Checkpoint(every=3, at_end=False), copy]
    return folder, run(folder, every=1, hooks=hooks), keep.states


def measured_lines(folder):
    """{step: line of the metrics} where updates were measured."""
    lines = metrics_lib.read(folder / "metrics.jsonl")
    return {x["step"]: x for x in lines if "update_ratio/layer_00" in x}


def test_against_the_states_themselves(whole):
    folder, result, states = whole
    assert not [name for name in result.metrics if "layer" in name]
    lines = measured_lines(folder)
    assert sorted(lines) == [1, 2, 3, 4, 5]
    roles = training.roles(small_encoder.model("shared"))
    stack = "encoder/stacks/0/"

    def owned(layer):
        return lambda p, x: x[layer] if p.startswith(stack) and len(x) == 4 else np.zeros(1)

    def shared(block):
        return lambda p, x: x[block] if p.startswith(stack) and len(x) == 2 else np.zeros(1)

    def of_role(role):
        return lambda p, x: x if roles[p] == role else np.zeros(1)

    groups = {f"layer_{i:02d}": owned(i) for i in range(4)}
    groups |= {f"block_{i:02d}": shared(i) for i in range(2)}
    groups |= {f"role_{r}": of_role(r) for r in roles.values()}
    for step, line in lines.items():
        ratios = {x.partition("/")[2] for x in line if x.startswith("update_ratio/")}
        assert ratios == set(groups)
        for name, select in groups.items():
            ratio, norm = norms(states, step, select)
            assert line[f"update_ratio/{name}"] == pytest.approx(ratio, rel=1e-4), name
            assert line[f"parameter_norm/{name}"] == pytest.approx(norm, rel=1e-5), name


def test_file_for_plots_and_resume(whole):
    folder, result, _ = whole
    read = update_statistics.read(folder)
    assert read["step"].tolist() == [1, 2, 3, 4, 5]
    assert read["layer_03/auxiliary"].shape == (5, 2)
    assert {"block_01/central", "block_00/other", "outside/other"} <= set(read)
    assert np.isfinite(read["block_01/central"]).all()
    killed = folder.parent / "killed"
    again = run(killed, every=1, hooks=[training.Checkpoint(at_end=False)])
    assert again.steps_run == 2
    resumed = update_statistics.read(killed)
    for name, values in read.items():
        np.testing.assert_array_equal(values, resumed[name], err_msg=name)
    helpers.assert_same_bits(result.state, again.state)


def test_training_is_not_touched(whole):
    measured = whole[1]
    assert measured.traces == 1
    helpers.assert_same_bits(small_encoder.run("shared", steps=5).state, measured.state)


def test_every_second_step(tmp_path):
    roles = training.roles(helpers.Classifier())
    helpers.run(tmp_path, steps=5, hooks=[training.UpdateStatistics(roles, 2)], log_every=1)
    lines = metrics_lib.read(tmp_path / "metrics.jsonl")
    measured = [x["step"] for x in lines if any(n.startswith("update_ratio/") for n in x)]
    assert measured == [2, 4]


def test_zero_norm_is_not_a_number():
    state, _ = helpers.start(steps=3)
    hook = training.UpdateStatistics(training.roles(state.model()), 1)
    zero = jax.tree.map(np.zeros_like, state.trainable)
    squares = jax.device_get(hook._measure(zero, state.trainable))
    cells = update_statistics._by_layer_and_role(squares, hook.roles)
    ratio, norm = update_statistics._ratio_and_norm(cells["outside", "auxiliary"])
    assert np.isnan(ratio)
    assert norm == 0.0
    with pytest.raises(ValueError, match="every=0 must be an integer of at least 1"):
        training.UpdateStatistics({}, 0)


def test_towers_and_experts():
    """Experts count with their layer; layers of several towers are told apart."""
    shapes = {
        "towers/encoder/stacks/0/attention/query/kernel": (2, 3, 3),
        "towers/encoder/stacks/1/attention/query/kernel": (1, 3, 3),
        "towers/decoder/stacks/0/attention/query/kernel": (2, 3, 3),
        "towers/decoder/stacks/0/feed_forward/experts/up/kernel": (2, 4, 3, 3),
        "towers/decoder/stacks/0/feed_forward/shared/up/cores/1": (2, 3, 2, 2, 3),
        "head/kernel": (3, 5),
    }
    rng = np.random.default_rng(0)
    old, new = ({p: rng.standard_normal(s) for p, s in shapes.items()} for _ in range(2))
    roles = {p: "central" if "shared" in p else "other" for p in shapes}
    trees = [state_lib.nest({p: x.astype(np.float32) for p, x in t.items()}) for t in (old, new)]
    squares = jax.device_get(update_statistics._squares(*trees))
    cells = update_statistics._by_layer_and_role(squares, roles)
    assert set(cells) == {
        *((f"encoder_layer_0{i}", "other") for i in range(3)),
        *((f"decoder_layer_0{i}", r) for i in range(2) for r in ("other", "central")),
        ("outside", "other"),
    }
    names = [p for p in shapes if "decoder" in p and roles[p] == "other"]
    expected = [
        sum(np.sum((new[p][1] - old[p][1]) ** 2) for p in names),
        sum(np.sum(old[p][1] ** 2) for p in names),
    ]
    np.testing.assert_allclose(cells["decoder_layer_01", "other"], expected, rtol=1e-5)
