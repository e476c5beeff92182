"""Over-parameterised students: exact at first, aligned with the teacher, merged to the last bit."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mpojax import compression, io, models, mpo, training
from mpojax.methods import mpop, opdf, opf
from mpojax.methods.opdf import distillation
from mpojax.methods.opdf import student as student_lib
from tests.models import small
from tests.models.test_kinds import IDS, MASK

BERT = dataclasses.replace(small.BERT, num_labels=2)
alignment_loss = jax.jit(opdf.alignment_loss, static_argnames=("alignment", "relative"))


@jax.jit
def outputs(model):
    return model(IDS, MASK)


def model(config=BERT, seed=0):
    return small.random_model(config, seed=seed)


def settings(**changes):
    return opdf.OPDFSettings(**{"num_inner_cores": 2, **changes})


@pytest.fixture(scope="module")
def pair():
    teacher = model(dataclasses.replace(BERT, num_layers=2 * BERT.num_layers), seed=1)
    return model(), teacher


@pytest.mark.parametrize("num_inner_cores", [0, 1, 3])
def test_the_same_function_before_and_after(pair, num_inner_cores):
    student, teacher = pair
    large, targets = opdf.over_parameterise(
        student, settings(num_inner_cores=num_inner_cores), teacher
    )
    assert set(targets) == set(large.shapes) == set(opdf.planned_shapes(BERT, settings()))
    np.testing.assert_allclose(outputs(large), outputs(student), rtol=0, atol=1e-5)
    merged = compression.merge(large)
    assert not merged.shapes
    assert models.array_shapes(merged.config) == models.array_shapes(student.config)
    np.testing.assert_allclose(outputs(merged), outputs(large), rtol=0, atol=1e-5)
    again, _ = opdf.over_parameterise(merged, settings(num_inner_cores=num_inner_cores), teacher)
    np.testing.assert_allclose(outputs(again), outputs(large), rtol=0, atol=1e-5)
    more = sum(shape.num_params - shape.num_dense_params for shape in large.shapes.values())
    counts = [sum(models.count_parameters(m).values()) for m in (large, student)]
    assert counts[0] - counts[1] == more


def test_merged_is_a_plain_checkpoint(pair, tmp_path):
    large, _ = opdf.over_parameterise(pair[0], settings(), pair[1])
    merged = compression.merge(large)
    io.export_huggingface(merged, tmp_path / "merged")
    loaded = io.load_pretrained(tmp_path / "merged")
    for name, array in models.to_arrays(merged).items():
        np.testing.assert_array_equal(models.to_arrays(loaded)[name], array)


def test_a_student_that_is_its_teacher_has_nothing_to_align(pair):
    student = pair[0]
    for alignment in ("procrustes_core", "core", "projector", "weight"):
        chosen = settings(alignment=alignment, layer_map=tuple(range(BERT.num_layers)))
        large, targets = opdf.over_parameterise(student, chosen, student)
        assert float(alignment_loss(large, targets, alignment)) < 1e-8
    raw = [
        mpo.core_distance(
            mpo.decompose(w, shape, "symmetric"),
            [c * s for c, s in zip(mpo.decompose(w, shape, "symmetric"), (-1, -1, 1), strict=True)],
        )
        for w, shape in [(np.eye(16) + 0.1, mpo.over_parameterised_shape(16, 16, 1))]
    ]
    assert float(raw[0]) > 0.5  # without signs fixed


def test_alignment_starts_lower_with_rotations(pair):
    student, teacher = pair
    values = {}
    for alignment in ("procrustes_core", "core"):
        large, targets = opdf.over_parameterise(student, settings(alignment=alignment), teacher)
        values[alignment] = float(alignment_loss(large, targets, alignment))
    assert values["procrustes_core"] < values["core"]


def test_auxiliary_cores_have_the_gradient_of_the_paper_and_the_centre_none(pair):
    large, targets = opdf.over_parameterise(pair[0], settings(), pair[1])
    graph, state = nnx.split(large)

    def loss(state):
        return opdf.alignment_loss(nnx.merge(graph, state), targets, "procrustes_core")

    slopes = models.to_arrays(nnx.merge(graph, jax.jit(jax.grad(loss))(state)))
    arrays = models.to_arrays(large)
    path = "layers/0/attention/query"
    goal = targets[path]
    central = (len(goal) - 1) // 2
    for k, core in enumerate(goal):
        slope = slopes[f"{path}/cores/{k}"]
        if k == central:
            assert not slope.any()
            continue
        expected = 2 * (arrays[f"{path}/cores/{k}"] - core) / core.size / np.mean(core**2)
        expected = expected / (len(goal) - 1) / len(targets)
        np.testing.assert_allclose(slope, expected, rtol=1e-4, atol=1e-9)
        assert np.any(slope)
    assert not np.any(slopes["head/kernel"])
    assert float(alignment_loss(large, targets, "none")) == 0.0


def test_gradient_norms_at_the_start_are_affine_in_the_number_of_units():
    rng = np.random.default_rng(0)
    w, x, y = (rng.standard_normal(s) for s in ((12, 12), (7, 12), (7, 12)))
    sums = []
    with jax.enable_x64(True):
        for num_inner_cores in range(4):
            shape = mpo.MPOShape((4, *(1,) * num_inner_cores, 3), (4, *(1,) * num_inner_cores, 3))
            cores = [jnp.asarray(c) for c in mpo.sign_fix(mpo.decompose(w, shape, "symmetric"))]

            def loss(cores, shape=shape):
                return jnp.mean(jnp.square(jnp.tanh(x @ mpo.to_matrix(tuple(cores), shape)) - y))

            slopes = jax.jit(jax.grad(loss))(cores)
            sums.append(float(sum(jnp.sum(jnp.square(g)) for g in slopes)))
    np.testing.assert_allclose(np.diff(sums), np.diff(sums)[0], rtol=1e-6)


@pytest.mark.parametrize(
    ("layers", "totals"),
    [
        (4, (68_706_050, 84_631_298, 100_556_546, 116_481_794, 132_407_042, 148_332_290)),
        (6, (90_844_418, 114_732_290, 138_620_162, 162_508_034, 186_395_906, 210_283_778)),
        (12, (157_259_522, 205_035_266, 252_811_010, 300_586_754, 348_362_498, 396_138_242)),
    ],
)
def test_published_counts(layers, totals):
    config = models.EncoderConfig(
        *(30_522, 768, layers, 12, 3072), max_positions=512, pooling="pooler", num_labels=2
    )
    dense = sum(models.count_parameters(mpop.abstract(config, {})).values())
    assert dense == {4: 52_780_802, 6: 66_956_546, 12: 109_483_778}[layers]
    for num_inner_cores, total in [*enumerate(totals), (8, None)]:
        shapes = opdf.planned_shapes(config, opdf.OPDFSettings(num_inner_cores=num_inner_cores))
        count = sum(models.count_parameters(mpop.abstract(config, shapes)).values())
        expected = (
            {4: 196_108_034, 6: 281_947_394, 12: 539_465_474}[layers]
            if num_inner_cores == 8
            else total
        )
        assert count == expected
        added = sum(shape.num_params - shape.num_dense_params for shape in shapes.values())
        assert count == dense + added


def test_a_student_starts_where_it_is_pulled_to(pair):
    teacher = pair[1]
    assert student_lib.starting_layers((), (), 6) == (1, 3, 5)
    assert student_lib.starting_layers((), (0, 5), 6) == (0, 5)
    assert student_lib.starting_layers((0, 1), (2, 5), 6) == (0, 1)
    assert student_lib.starting_layers((), (), 1) == (0,)
    student = student_lib.with_layers(teacher, student_lib.starting_layers((), (), 6))
    large, targets = opdf.over_parameterise(student, settings(), teacher)
    assert float(alignment_loss(large, targets, "procrustes_core")) < 1e-20
    first = student_lib.with_layers(teacher, (0, 1, 2))
    large, targets = opdf.over_parameterise(first, settings(), teacher)
    assert float(alignment_loss(large, targets, "procrustes_core")) > 1e-2


def test_layer_maps():
    assert student_lib.layer_map((), 6, 12) == (1, 3, 5, 7, 9, 11)
    assert student_lib.layer_map((), 3, 6) == (1, 3, 5)
    assert student_lib.layer_map((), 6, 6) == tuple(range(6))
    assert student_lib.layer_map([0, 2], 2, 3) == (0, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alignment": "cosine"}, "alignment='cosine' must be one of 'procrustes_core'"),
        ({"num_inner_cores": -1}, "num_inner_cores=-1 must be an integer"),
        ({"alignment_weight": -1.0}, "alignment_weight=-1.0 must be a finite number of at least 0"),
        ({"layer_map": (0,)}, r"layer_map=\(0,\) must name a layer of the teacher for each"),
        ({"layer_map": (0, 1, 9)}, r"layer_map has 9; the teacher's layers are 0\.\.5"),
        ({"matrices": "nothing"}, "matches no matrix"),
        ({"matrices": "("}, r"matrices='\(' must be a regular expression"),
        ({"factor_overrides": ((16, 4),)}, r"factor_overrides=\(\(16, 4\),\) must be a list, each"),
        ({"alignment": "projector", "relative": False}, "alignment='projector' is relative"),
    ],
)
def test_mistakes(pair, changes, message):
    with pytest.raises(ValueError, match=message):
        opdf.over_parameterise(pair[0], settings(**changes), pair[1])


def test_what_cannot_be_aligned(pair):
    student, teacher = pair
    wide = model(dataclasses.replace(BERT, intermediate_size=64), seed=1)
    with pytest.raises(ValueError, match=r"the teacher's layers/0/feed_forward/up is 16 x 64"):
        opdf.over_parameterise(student, settings(layer_map=(0, 1, 2)), wide)
    large, _ = opdf.over_parameterise(student, settings(), teacher)
    with pytest.raises(ValueError, match="is in MPO form already; merge the student"):
        opdf.over_parameterise(large, settings(), teacher)
    with pytest.raises(ValueError, match="give a layer_map"):
        student_lib.layer_map((), 6, 3)


def test_the_matrices_that_matter_most_are_selected():
    names = [f"layers/{i}/{role}" for i in range(3) for role in ("query", "up")]
    scores = dict(zip(names, (1.0, 5.0, 3.0, 2.0, 2.0, 9.0), strict=True))
    found = opf.select(scores, 2)
    assert found == ["layers/1/query", "layers/2/query", "layers/2/up", "layers/0/up"]
    assert opf.select(scores, 1, chosen=found) == ["layers/0/query", "layers/1/up"]
    assert opf.role("decoder/layers/11/attention/query") == "attention/query"


def test_sizes_without_factors():
    config = models.EncoderConfig(*(100, 31, 1, 1, 37), max_positions=8)
    with pytest.raises(ValueError, match="attention/query is 31 x 31, whose sizes have no factors"):
        opdf.planned_shapes(config, opdf.OPDFSettings())


@pytest.mark.parametrize("relative", [True, False])
def test_a_teacher_with_a_matrix_of_zeros_has_a_finite_loss(pair, relative):
    arrays = models.to_arrays(pair[1])
    name = "layers/1/attention/query/kernel"
    arrays[name] = np.zeros_like(arrays[name])
    teacher = models.from_arrays(pair[1].config, {}, arrays)
    for alignment in ("procrustes_core", "weight"):
        large, targets = opdf.over_parameterise(pair[0], settings(alignment=alignment), teacher)
        assert np.isfinite(alignment_loss(large, targets, alignment, relative))
    path = name.removesuffix("/kernel").replace("/1/", "/0/")
    goal = {path: targets[path]}
    own = models.to_arrays(pair[0])[f"{path}/kernel"]
    found = alignment_loss(large, goal, "weight", relative=False)
    np.testing.assert_allclose(found, np.mean(own**2), rtol=1e-4)


def test_cores_as_they_come_are_further_apart_than_fixed_ones():
    """Of a student that is its teacher, but for a little noise."""
    teacher = model(seed=1)
    noise = np.random.default_rng(0)
    arrays = {
        name: array + 1e-3 * np.std(array) * noise.standard_normal(array.shape).astype(np.float32)
        for name, array in models.to_arrays(teacher).items()
    }
    student, losses = models.from_arrays(teacher.config, {}, arrays), {}
    for alignment in ("raw", "core", "procrustes_core"):
        chosen = settings(alignment=alignment, layer_map=tuple(range(BERT.num_layers)))
        large, targets = opdf.over_parameterise(student, chosen, teacher)
        np.testing.assert_allclose(outputs(large), outputs(student), rtol=0, atol=1e-5)
        losses[alignment] = float(alignment_loss(large, targets, alignment))
    assert losses["procrustes_core"] < losses["core"] < losses["raw"]


@pytest.mark.parametrize(
    ("factor_overrides", "attention", "feed_forward"),
    [
        (((768, (16, 2), (2, 12)), (3072, (32, 2), (2, 24))), 2_334_976, 9_339_904),
        (((768, (4, 4, 2), (2, 3, 4)), (3072, (8, 4, 2), (2, 4, 6))), 2_335_488, 9_341_504),
    ],
)
def test_published_counts_of_other_factor_lists(factor_overrides, attention, feed_forward):
    config = models.EncoderConfig(*(100, 768, 1, 12, 3072), max_positions=8)
    shapes = opdf.planned_shapes(
        config, opdf.OPDFSettings(num_inner_cores=4, factor_overrides=factor_overrides)
    )
    assert shapes["layers/0/attention/query"].num_params == attention
    assert shapes["layers/0/feed_forward/up"].num_params == feed_forward
    wrong = opdf.OPDFSettings(factor_overrides=((768, (16, 2), (2, 11)),))
    with pytest.raises(ValueError, match="do not multiply to 768"):
        opdf.planned_shapes(config, wrong)


def test_the_plain_loss_of_the_paper(pair):
    large, targets = opdf.over_parameterise(pair[0], settings(), pair[1])
    arrays, parts = models.to_arrays(large), []
    for path, goal in targets.items():
        central = (len(goal) - 1) // 2
        parts += [
            np.mean((arrays[f"{path}/cores/{k}"] - core) ** 2)
            for k, core in enumerate(goal)
            if k != central
        ]
    found = alignment_loss(large, targets, "procrustes_core", relative=False)
    np.testing.assert_allclose(found, np.mean(parts), rtol=1e-5)


@pytest.mark.parametrize(
    "alignment", ["procrustes_core", pytest.param("weight", marks=pytest.mark.slow)]
)
def test_micro_batches_of_a_student_share_its_rebuilt_matrices(alignment):
    config = dataclasses.replace(small.BERT, num_labels=2, dropout=0.0, attention_dropout=0.0)
    teacher = small.random_model(config, seed=1)
    settings = opdf.OPDFSettings(num_inner_cores=1, alignment=alignment)
    student, targets = opdf.over_parameterise(small.random_model(config, seed=0), settings, teacher)
    rng = np.random.default_rng(0)
    batch = {
        "input_ids": rng.integers(1, 9, (4, 5)).astype(np.int32),
        "attention_mask": np.ones((4, 5), np.int32),
        "labels": rng.integers(0, 2, 4).astype(np.int32),
    }

    def stepped(grad_accum_steps, precompute):
        pair = distillation.Pair(student, teacher, targets)
        optimizer = training.make_optimizer(
            {"name": "sgd", "learning_rate": 0.1, "schedule": "constant"}, training.roles(pair), 10
        )
        state = training.TrainState.create(pair, distillation.of_student, optimizer)
        loss = distillation.distillation_loss(
            distillation.Weights(task=0.5, hidden=0.1),
            lambda pair: opdf.alignment_loss(pair.cores, pair.targets, alignment),
        )
        step = training.TrainStep(
            loss, optimizer, grad_accum_steps=grad_accum_steps, precompute=precompute
        )
        state, metrics = step(state, batch)
        return state.model().student, metrics

    whole, expected = stepped(1, None)
    parts, metrics = stepped(2, opdf.rebuilt_once)
    for name in ("loss", "alignment", "gradient_norm"):
        np.testing.assert_allclose(metrics[name], expected[name], rtol=2e-5)
    one, other = (models.to_arrays(model) for model in (whole, parts))
    for name, array in one.items():
        np.testing.assert_allclose(other[name], array, rtol=0, atol=2e-5, err_msg=name)
