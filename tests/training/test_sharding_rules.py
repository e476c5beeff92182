"""Rules made from a model, and the table of what they do."""

import jax
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from mpojax import models, mpo, nn, training
from mpojax.training import sharding_rules
from mpojax.training import state as state_lib
from tests.training import small_decoder

SIZES = {
    "vocab_size": 48,
    "hidden_size": 16,
    "num_layers": 4,
    "num_heads": 2,
    "intermediate_size": 32,
}
SHAPES = {
    f"layers/{layer}/{name}": mpo.MPOShape(ins, outs)
    for layer in range(4)
    for name, ins, outs in (
        ("attention/query", (2, 4, 2), (2, 4, 2)),
        ("feed_forward/up", (2, 4, 2), (2, 8, 2)),
    )
}


def abstract_model(shapes=SHAPES, **changes):
    config = models.EncoderConfig(**SIZES | {"num_labels": 2} | changes)
    return nnx.eval_shape(lambda: models.build(config, shapes, rngs=nnx.Rngs(0)))


def abstract_state(model):
    optimizer = training.make_optimizer({}, training.roles(model), 10)
    return training.abstract_state(model, nnx.Param, optimizer)


def specs(model, min_size=1, **mesh):
    rules = training.model_rules(model, min_size)
    mesh = training.make_mesh(mesh)
    return rules.specs(state_lib.flatten_variables(model), mesh)


def test_by_role_and_path():
    made = specs(abstract_model(), data=1, fsdp=4, tensor=2)
    layer = "encoder/stacks/0"
    # (layers, in, out): what makes features splits them over tensor, what sums over them as well.
    assert made[f"{layer}/attention/key/kernel"] == P(None, "fsdp", "tensor")
    assert made[f"{layer}/attention/out/kernel"] == P(None, "tensor", "fsdp")
    assert made[f"{layer}/feed_forward/down/kernel"] == P(None, "tensor", "fsdp")
    # Cores (layers, d, i, j, d'): never along layers.
    assert made[f"{layer}/attention/query/cores/1"] == P(None, "fsdp", None, None, "tensor")
    assert made[f"{layer}/attention/query/cores/0"] == P(None, None, None, None, "fsdp")
    assert made[f"{layer}/attention/query/cores/2"] == P(None, "fsdp", None, None, None)
    assert made["encoder/embeddings/word/table"] == P(("tensor", "fsdp"), None)
    assert made["encoder/embeddings/position/table"] == P("fsdp", None)
    assert made["encoder/pooler/kernel"] == P("fsdp", None)
    assert not any(tuple(made[f"{layer}/attention/key/bias"]))


def test_the_larger_bond_of_a_central_core_goes_over_fsdp():
    shapes = {"pooler": mpo.MPOShape((4, 2, 2), (4, 2, 2)), "embeddings/word": None}
    shapes = {"pooler": shapes["pooler"]}
    made = specs(abstract_model(shapes), data=2, fsdp=2, tensor=2)
    assert made["encoder/pooler/cores/1"] == P("fsdp", None, None, "tensor")
    shapes = {"pooler": mpo.MPOShape((2, 2, 4), (2, 2, 4))}
    made = specs(abstract_model(shapes), data=2, fsdp=2, tensor=2)
    assert made["encoder/pooler/cores/1"] == P("tensor", None, None, "fsdp")


def test_small_ones_are_replicated_and_layers_never_split():
    made = specs(abstract_model(), min_size=1025, fsdp=8)
    split = {path for path, spec in made.items() if any(spec)}
    assert split == {
        "encoder/embeddings/position/table",
        "encoder/stacks/0/feed_forward/down/kernel",
        "encoder/stacks/0/feed_forward/up/cores/1",
    }
    for path, spec in specs(abstract_model(), fsdp=4, data=2).items():
        if state_lib.stack_axes(path) and len(spec):
            assert spec[0] is None, path
    # Without a rule, too: 8 layers are divisible, and the largest size.
    rules = training.Rules(fsdp_min_size=1)
    leaf = {"stacks/0/x": jax.ShapeDtypeStruct((8, 4), "float32")}
    assert rules.specs(leaf, training.make_mesh({"fsdp": 4})) == {"stacks/0/x": P(None, "fsdp")}


class TestTable:
    def test_rows(self):
        state = abstract_state(abstract_model())
        mesh = training.make_mesh({"data": 1, "fsdp": 4, "tensor": 2})
        rules = training.model_rules(state.model(), 1)
        rows = {row.path: row for row in training.sharding_table(state, mesh, rules)}
        assert set(rows) == set(state_lib.flatten(state.trainable))
        row = rows["encoder/stacks/0/attention/key/kernel"]
        assert (row.shape, row.spec) == ((4, 16, 16), P(None, "fsdp", "tensor"))
        assert row.bytes_per_device == 4 * 16 * 16 * 4 / 8
        assert rows["encoder/stacks/0/attention/key/bias"].bytes_per_device == 4 * 16 * 4
        assert not any(row.notes for row in rows.values())
        text = sharding_rules.table_text(list(rows.values()))
        line = next(
            x for x in text.splitlines() if x.startswith("encoder/stacks/0/attention/key/k")
        )
        assert line.split() == [
            *("encoder/stacks/0/attention/key/kernel", "4", "x", "16", "x", "16"),
            *("-,", "fsdp,", "tensor", "0.000"),
        ]

    def test_what_does_not_divide_is_replicated_and_said(self):
        state = abstract_state(abstract_model(vocab_size=52))
        mesh = training.make_mesh({"data": 1, "fsdp": 2, "tensor": 4})
        rules = training.model_rules(state.model(), 1)
        rows = {row.path: row for row in training.sharding_table(state, mesh, rules)}
        word = rows["encoder/embeddings/word/table"]
        assert word.spec == P("tensor", None)  # 52 = 4 x 13
        assert word.notes == ("axis 0 of 52 not split over fsdp",)
        assert "axis 0 of 52 not split over fsdp" in sharding_rules.table_text([word])
        head = rows["head/kernel"]
        assert (head.spec, head.notes) == (P("fsdp", None), ())

    def test_axes_of_one_device_are_not_shown(self):
        state = abstract_state(abstract_model())
        rules = training.model_rules(state.model(), 1)
        rows = training.sharding_table(state, training.make_mesh(), rules)
        assert not any(any(row.spec) for row in rows)
        assert "fsdp" not in sharding_rules.table_text(rows)


def test_optimizer_state_is_split_like_its_parameter():
    model = abstract_model()
    for name in ("adamw", "lamb", "muon"):
        optimizer = training.make_optimizer({"name": name}, training.roles(model), 10)
        state = training.abstract_state(model, nnx.Param, optimizer)
        mesh = training.make_mesh({"data": 1, "fsdp": 4, "tensor": 2})
        placed = training.state_shardings(state, mesh, training.model_rules(model, 1))
        path = "encoder/stacks/0/attention/key/kernel"
        found = [x for p, x in state_lib.flatten(placed.optimizer).items() if p.endswith(path)]
        assert len(found) == (1 if name == "muon" else 2)
        assert all(x.spec == P(None, "fsdp", "tensor") for x in found)


@pytest.mark.parametrize("rank", [1, 3])
def test_a_rule_longer_than_the_shape(rank):
    rules = training.Rules((("a", (None,) * (rank + 1)),), strict=False)
    with pytest.raises(ValueError, match="more dimensions than a with shape"):
        rules.specs({"a": jax.ShapeDtypeStruct((2,) * rank, "float32")}, training.make_mesh())


class TestLanguageModels:
    def test_decoder_with_experts(self):
        made = specs(small_decoder.abstract_model(tied=False), data=1, fsdp=2, tensor=2, expert=2)
        block = "tower/stacks/0/feed_forward"
        # (layers, experts, d, i, j, d'): the rules of a slice, behind the axis of experts.
        assert made[f"{block}/experts/up/cores/0"] == P(None, "expert", None, None, None, "fsdp")
        assert made[f"{block}/experts/up/cores/2"] == P(None, "expert", "fsdp", None, None, None)
        assert made[f"{block}/experts/up/bias"] == P(None, "expert", None)
        assert made[f"{block}/shared/up/cores/1"] == P(None, "fsdp", None, None, "tensor")
        assert not any(made[f"{block}/router/kernel"])
        assert made["tower/stacks/0/attention/value/kernel"] == P(None, "fsdp", "tensor")
        assert made["embeddings/word/table"] == P(("tensor", "fsdp"), None)
        assert made["head/kernel"] == P("fsdp", "tensor")

    def test_experts_are_split_however_small(self):
        made = specs(small_decoder.abstract_model(), min_size=2**20, data=2, expert=4)
        split = {path for path, spec in made.items() if any(spec)}
        assert split == {path for path in made if "/experts/" in path}
        assert made["tower/stacks/0/feed_forward/experts/up/bias"] == P(None, "expert", None)

    def test_experts_that_the_mesh_does_not_divide(self):
        made = small_decoder.abstract_model()
        state = abstract_state(made)
        mesh = training.make_mesh({"data": 1, "expert": 8})
        rows = training.sharding_table(state, mesh, training.model_rules(made, 1))
        row = next(row for row in rows if row.path.endswith("experts/up/bias"))
        assert not any(row.spec)
        assert row.notes == ("axis 1 of 4 not split over expert",)

    def test_encoder_decoder_with_dense_experts(self):
        config = models.EncoderDecoderConfig(
            vocab_size=48,
            hidden_size=16,
            num_layers=1,
            num_heads=2,
            head_size=8,
            intermediate_size=32,
            gated=True,
            experts=(("decoder/.*", nn.ExpertSettings(4)),),
        )
        model = nnx.eval_shape(lambda: models.build(config, rngs=nnx.Rngs(0)))
        made = specs(model, data=1, fsdp=2, tensor=2, expert=2)
        decoder, encoder = "towers/decoder/stacks/0", "towers/encoder/stacks/0"
        for name in ("query", "key", "value"):
            assert made[f"{decoder}/cross_attention/{name}/kernel"] == P(None, "fsdp", "tensor")
        assert made[f"{decoder}/cross_attention/out/kernel"] == P(None, "tensor", "fsdp")
        for name in ("up", "gate"):
            own = made[f"{decoder}/feed_forward/experts/{name}/kernel"]
            assert own == P(None, "expert", "fsdp", "tensor")
            assert made[f"{encoder}/feed_forward/{name}/kernel"] == P(None, "fsdp", "tensor")
        own = made[f"{decoder}/feed_forward/experts/down/kernel"]
        assert own == P(None, "expert", "tensor", "fsdp")
        assert made[f"{encoder}/feed_forward/down/kernel"] == P(None, "tensor", "fsdp")
        assert made["towers/encoder/relative_bias/table"] == P("fsdp", None)
