"""The verbs on Flax NNX modules that are no models of this library."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import mpojax as mj
from mpojax import nn
from tests.models import small

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.standard_normal((6, 24)), jnp.float32)
IMAGES = jnp.asarray(RNG.standard_normal((3, 8, 8, 1)), jnp.float32)
IDS = jnp.asarray(RNG.integers(0, 40, (4, 7)))


@pytest.fixture(autouse=True)
def rank_promotion_as_users_have_it():
    with jax.numpy_rank_promotion("allow"):
        yield


class MLP(nnx.Module):
    """Two linear layers, of which one is used twice, under two names."""

    def __init__(self, rngs, **options):
        self.up = nnx.Linear(24, 24, rngs=rngs, **options)
        self.again = self.up
        self.norm = nnx.BatchNorm(24, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.down = nnx.Linear(24, 6, use_bias=False, rngs=rngs, **options)

    def __call__(self, x):
        x = nnx.relu(self.again(nnx.relu(self.up(x))))
        return self.down(self.dropout(self.norm(x)))


class Block(nnx.Module):
    def __init__(self, rngs):
        self.norm = nnx.LayerNorm(16, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(4, 16, decode=False, rngs=rngs)
        self.up = nnx.Linear(16, 32, rngs=rngs)
        self.down = nnx.Linear(32, 16, rngs=rngs)

    def __call__(self, x, mask=None):
        x = x + self.attention(self.norm(x), mask=mask)
        return x + self.down(nnx.gelu(self.up(x)))


class ViT(nnx.Module):
    """Patches by a convolution, blocks in a list, the head in a dict."""

    def __init__(self, rngs):
        self.patches = nnx.Conv(1, 16, (4, 4), (4, 4), rngs=rngs)
        self.position = nnx.Param(jnp.zeros((4, 16)))
        self.blocks = nnx.List([Block(rngs) for _ in range(2)])
        self.heads = nnx.Dict(classes=nnx.Linear(16, 5, rngs=rngs))

    def __call__(self, images):
        x = self.patches(images).reshape(images.shape[0], 4, 16) + self.position
        for block in self.blocks:
            x = block(x)
        return self.heads["classes"](x.mean(1))


class Transformer(nnx.Module):
    """Tied token embedding, a mask, two outputs."""

    def __init__(self, rngs):
        self.tokens = nnx.Embed(40, 16, rngs=rngs)
        self.positions = nnx.Embed(7, 16, rngs=rngs)
        self.blocks = nnx.List([Block(rngs)])

    def __call__(self, ids, attention_mask=None):
        x = self.tokens(ids) + self.positions(jnp.arange(ids.shape[1]))
        mask = None if attention_mask is None else attention_mask[:, None, None, :] > 0
        for block in self.blocks:
            x = block(x, mask)
        return {"hidden": x, "logits": self.tokens.attend(x)}


MODULES = {"mlp": (MLP, X), "vit": (ViT, IMAGES), "transformer": (Transformer, IDS)}


def made(name):
    kind, x = MODULES[name]
    module = kind(nnx.Rngs(0))
    module.eval()
    return module, x


run = nnx.jit(lambda module, x: module(x))


def close(one, other, x, atol=1e-5):
    pairs = zip(jax.tree.leaves(run(one, x)), jax.tree.leaves(run(other, x)), strict=True)
    for found, expected in pairs:
        np.testing.assert_allclose(found, expected, atol=atol)


def modules_in(module):
    return [type(node) for _, node in nnx.iter_graph(module) if isinstance(node, nnx.Module)]


@pytest.mark.parametrize("name", MODULES)
def test_full_bonds_change_nothing_and_merge_puts_the_layers_back(name):
    module, x = made(name)
    before = jax.tree.map(np.asarray, nnx.state(module, nnx.Param))
    chains, report = mj.compress(module, [mj.Rule("all", cores=3)])
    assert type(chains) is type(module)
    assert report.dense_parameters == sum(v.size for v in jax.tree.leaves(before))
    assert not {nnx.Linear, nnx.LinearGeneral, nnx.Embed} & set(modules_in(chains))
    close(chains, module, x)
    dense = mj.merge(chains)
    assert nnx.graphdef(dense) == nnx.graphdef(module)
    close(dense, module, x)
    chains.eval()
    jax.tree.map(np.testing.assert_array_equal, before, nnx.state(module, nnx.Param))


def test_rules_take_paths_budgets_and_calibrations():
    module, x = made("vit")
    tiny, report = mj.compress(module, [mj.Rule("blocks/./(up|down)", bond=3)])
    assert [row.path for row in report.rows] == [
        f"blocks/{i}/{name}" for i in (0, 1) for name in ("down", "up")
    ]
    assert report.parameters == sum(v.size for v in jax.tree.leaves(nnx.state(tiny, nnx.Param)))
    again, more = mj.compress(tiny, [mj.Rule(".*/attention/.*", rank=2)])
    assert more.dense_parameters == report.dense_parameters
    assert type(again.blocks[1].attention.out).__name__ == "MPOLinearGeneral"
    calibration = mj.calibrate(module, [x] * 6 + [{"images": x}, (x,)])
    assert calibration.num_examples == 24
    rules = [mj.Rule("layers", form="low_rank", data_aware=True)]
    _, plain = mj.compress(module, budget=0.6, calibration=calibration, keep_dense=False)
    _, aware = mj.compress(module, rules, budget=0.6, calibration=calibration, keep_dense=False)
    for row in aware.rows:
        assert row.output_error == pytest.approx(row.data_svd_output_error, rel=1e-5)
    assert plain.parameters <= 0.6 * plain.dense_parameters


def test_calibration_is_that_of_the_inputs():
    """By hand for the first layers; masks tell which inputs count, the loss gives gradients."""
    module, _ = made("mlp")
    found = mj.calibrate(module, [np.asarray(X)])
    inner = np.asarray(nnx.relu(module.up(X)), np.float64)
    rows = np.concatenate([np.asarray(X, np.float64), inner])
    np.testing.assert_allclose(found.covariance("again"), rows.T @ rows / 12, atol=1e-5)
    mask = np.array([1, 1, 0, 1, 0, 0])
    found = mj.calibrate(module, [{"x": X, "example_mask": mask}])
    assert found.num_examples == 3
    assert found.statistics["down"].count == 3
    loss = mj.calibrate(module, [{"x": X}], loss=lambda m, batch, key: jnp.mean(m(batch["x"])))
    assert loss.statistics["down"].gradient == pytest.approx(1 / 6, rel=1e-5)

    module, ids = made("transformer")
    mask = (np.arange(7) < np.array([[7], [3], [5], [1]])).astype(np.int32)
    found = mj.calibrate(module, [{"ids": ids, "attention_mask": mask}])
    counts = np.bincount(np.asarray(ids)[mask > 0], minlength=40)
    np.testing.assert_allclose(found.covariance("tokens"), counts / 16)
    assert found.statistics["blocks/0/attention/query"].count == 16


def test_adapters_stand_around_layers_and_merge_takes_them_in():
    module, x = made("transformer")
    tiny, _ = mj.compress(module, [mj.Rule(".*/down", cores=3)])
    rules = [
        mj.Rule(".*/(query|down)", rank=2),
        mj.Rule(".*/out", kind="mpo", bond=2, num_cores=2),
        mj.Rule(".*/up", kind="rescale"),
        mj.Rule(".*/value", rank=2, start="offset"),
    ]
    adapted = mj.add_adapters(tiny, rules, scale=2.0, rngs=nnx.Rngs(1))
    close(adapted, module, x)
    graphdef, tuned, rest = nnx.split(adapted, nn.AdapterParam, ...)
    rng = np.random.default_rng(3)
    tuned = jax.tree.map(lambda v: v + 0.1 * rng.standard_normal(v.shape), tuned)
    adapted = nnx.merge(graphdef, tuned, rest)
    changed = np.asarray(run(adapted, x)["logits"])
    assert np.abs(changed - np.asarray(run(module, x)["logits"])).max() > 1e-2
    again, _ = mj.compress(adapted, [mj.Rule(".*/query", cores=3)])
    for model in (again, mj.merge(adapted), mj.merge(again)):
        np.testing.assert_allclose(run(model, x)["logits"], changed, atol=1e-4)
    assert nnx.graphdef(mj.merge(again)) == nnx.graphdef(module)


def test_types_of_weights_and_of_computing_stay():
    module = MLP(nnx.Rngs(0), param_dtype=jnp.bfloat16, dtype=jnp.bfloat16)
    module.eval()
    chains, _ = mj.compress(module, [mj.Rule("all", cores=3)])
    assert chains.up(X).dtype == jnp.bfloat16
    merged = mj.merge(chains)
    assert merged.up.kernel.dtype == jnp.bfloat16
    np.testing.assert_allclose(merged.up.kernel[...], module.up.kernel[...], atol=1e-7)
    dense = nnx.Sequential(nn.Dense(24, 8, rngs=nnx.Rngs(0)), nn.MPOLinear.from_matrix(np.eye(8)))
    (first, second) = mj.merge(mj.compress(dense, [mj.Rule("layers/0", bond=2)])[0]).layers
    assert (type(first), type(second)) == (nn.Dense, nnx.Linear)


@nnx.vmap(in_axes=0, out_axes=0)
def _stacked(rngs):
    return nnx.Linear(24, 24, rngs=rngs)


def _refused():
    module, x = made("vit")
    mlp, _ = made("mlp")
    stacked = _stacked(nnx.Rngs(0).split(3))
    adapted = mj.add_adapters(mlp, [mj.Rule("down", rank=1)], rngs=nnx.Rngs(0))
    chains, _ = mj.compress(mlp, [mj.Rule("down", cores=3)])
    encoder = small.random_model(small.BERT, small.all_shapes(small.BERT))
    around = nnx.Sequential(encoder)

    def adapters(model, **settings):
        return mj.add_adapters(model, [mj.Rule("down", **settings)], rngs=nnx.Rngs(0))

    yield lambda: mj.compress(module, [mj.Rule("patches", bond=2)]), "a Conv has no chain form"
    yield lambda: mj.compress(module, [mj.Rule("nothing", bond=2)]), "matches no matrix.*whole path"
    yield lambda: mj.compress(mlp, [mj.Rule("up", bond=2)]), "held twice; its path is again"
    yield lambda: mj.compress(chains, [mj.Rule("down", bond=2)]), "in MPO form already"
    yield lambda: mj.compress(mlp), "without rules needs a size"
    yield lambda: mj.compress(nnx.Sequential(stacked), [mj.Rule(".*", bond=2)]), "stacked by nnx"
    yield lambda: mj.calibrate(module, [{"x": x}]), "batch 1 holds no input: ViT takes images"
    yield lambda: mj.calibrate(module, []), "at least one batch"
    yield (
        lambda: mj.merge(around),
        "layers/0/.*/key cannot be merged on its own: its cores",
    )
    yield lambda: adapters(adapted, rank=2), "down has an adapter already"
    yield lambda: adapters(mlp, kind="bias"), "kind='bias' adds nothing to a module of your own"
    yield lambda: adapters(chains, rank=2, start="offset"), "in MPO form: an offset start"
    yield lambda: mj.add_experts(mlp, [mj.Rule("up", number=2)], rngs=nnx.Rngs(0)), "experts belong"


def test_what_cannot_be_done_is_said():
    for call, message in _refused():
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(TypeError, match="a Flax NNX module is needed, not dict"):
        mj.compress({"kernel": np.eye(3)}, bond=2)
    with pytest.raises(TypeError, match=r"not str: load it by mpojax.load\('folder'\)"):
        mj.compress("folder", bond=2)


def test_folders_bring_a_module_back(tmp_path):
    module, x = made("vit")
    tiny, _ = mj.compress(module, [mj.Rule(".*/(up|out)", bond=3)])
    rules = [
        mj.Rule(".*/(up|query)", rank=2, scale=0.5),
        mj.Rule("heads/.*", kind="bottleneck", width=2),
    ]
    tiny = mj.add_adapters(tiny, rules, rngs=nnx.Rngs(1))
    graphdef, state = nnx.split(tiny)
    tiny = nnx.merge(graphdef, jax.tree.map(lambda v: v + 0.01, state))
    mj.save(tiny, tmp_path / "vit")
    other, _ = made("vit")
    before = jax.tree.map(np.asarray, nnx.state(other, nnx.Param))
    loaded = mj.load(tmp_path / "vit", into=other)
    assert nnx.graphdef(loaded) == nnx.graphdef(tiny)
    jax.tree.map(np.testing.assert_array_equal, nnx.state(loaded), nnx.state(tiny))
    jax.tree.map(np.testing.assert_array_equal, before, nnx.state(other, nnx.Param))
    mj.save(mj.merge(mj.compress(module, bond=2)[0]), tmp_path / "dense")
    close(mj.load(tmp_path / "dense", into=other), mj.merge(mj.compress(module, bond=2)[0]), x)

    mlp, _ = made("mlp")
    with pytest.raises(ValueError, match=r"a module of your own: .* load\(folder, into=ViT"):
        mj.load(tmp_path / "vit")
    with pytest.raises(
        ValueError, match=r"not a complete mpojax model: it was saved with chains .*"
    ):
        mj.load(tmp_path / "vit", into=mlp)
    with pytest.raises(ValueError, match=r"weights do not fit the module .* missing"):
        mj.load(tmp_path / "dense", into=mlp)
    with pytest.raises(ValueError, match="transformers knows no MLP"):
        mj.save(mlp, tmp_path / "hf", format="huggingface")
    mlp.down.kernel[...] = jnp.full((24, 6), jnp.nan)
    with pytest.raises(ValueError, match="NaN or infinite: down/kernel"):
        mj.save(mlp, tmp_path / "nan")


class Idle(nnx.Module):
    """One layer that runs, and a map and a table of as many entries that do not."""

    def __init__(self, rngs):
        self.up = nnx.Linear(8, 16, rngs=rngs)
        self.spare = nnx.Linear(8, 8, rngs=rngs)
        self.table = nnx.Embed(64, 8, rngs=rngs)

    def __call__(self, x):
        return self.up(x)


def test_statistics_of_layers_that_do_not_run_have_their_own_shapes():
    calibration = mj.calibrate(Idle(nnx.Rngs(0)), [np.ones((4, 8), np.float32)])
    shapes = {path: entry.covariance.shape for path, entry in calibration.statistics.items()}
    assert shapes == {"up": (8, 8), "spare": (8, 8), "table": (64,)}


@pytest.mark.parametrize(
    "verb", [mj.merge, lambda what: mj.compress(what, bond=2), lambda what: mj.save(what, "unused")]
)
def test_what_is_no_module_is_refused(verb):
    with pytest.raises(TypeError, match="a Flax NNX module is needed, not int"):
        verb(3)


def test_module_with_statistics_and_dropout_is_calibrated_and_printed_on_a_page():
    rngs = nnx.Rngs(0)
    parts = nnx.Linear(8, 16, rngs=rngs), nnx.BatchNorm(16, rngs=rngs), nnx.Dropout(0.1, rngs=rngs)
    module = nnx.Sequential(*parts, nnx.Linear(16, 8, rngs=rngs))
    calibration = mj.calibrate(module, [np.ones((4, 8), np.float32)] * 2)
    assert sorted(calibration.statistics) == ["layers/0", "layers/3"]
    assert "dot_general" not in repr(mj.compress(nnx.Linear(8, 8, rngs=rngs), bond=2)[0])


def test_the_first_argument_of_a_call_has_any_name():
    class Net(nnx.Module):
        def __init__(s):  # noqa: N805
            s.map = nnx.Linear(6, 4, rngs=nnx.Rngs(0))

        def __call__(s, rows):  # noqa: N805
            return s.map(rows)

    x = np.ones((8, 6), np.float32)
    assert list(mj.calibrate(Net(), [x, {"rows": x}]).statistics) == ["map"]
