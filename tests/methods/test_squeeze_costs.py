"""What the loss pays for a cut, against the loss itself."""

import numpy as np
import pytest
from flax import nnx

from mpojax import compression, models, mpo, training
from mpojax.methods.mpop import costs
from tests.methods import squeezing_run

PATH = "layers/1/feed_forward/up"
LOSS = training.objective("classification")


def chains():
    dense = models.with_head(
        models.build(squeezing_run.CONFIG, rngs=nnx.Rngs(0)), 2, rngs=nnx.Rngs(1)
    )
    return compression.compress(dense, [(PATH, {"cores": 3})])[0]


def batches(count):
    return [squeezing_run.arrays(16, seed) for seed in range(count)]


def canonical(model):
    arrays = models.to_arrays(model)
    shape = model.shapes[PATH]
    cores = tuple(np.asarray(arrays[f"{PATH}/cores/{k}"], np.float64) for k in range(3))
    # Another gauge than the central one, as training leaves it.
    turn = np.linalg.qr(np.random.default_rng(0).standard_normal((shape.bond_dims[0],) * 2))[0]
    cores = (cores[0] @ turn, np.tensordot(turn.T, cores[1], axes=1), cores[2])
    arrays |= {f"{PATH}/cores/{k}": np.float32(core) for k, core in enumerate(cores)}
    model = models.from_arrays(model.config, model.shapes, arrays)
    return model, {PATH: (cores, *mpo.canonicalize_with_spectra(cores))}


def test_scores_are_the_parts_of_the_matrix_times_its_gradient():
    model, held = canonical(chains())
    slopes = list(costs.gradients(model, LOSS, batches(2)))
    found = costs.loss_spectra(held, slopes)[PATH]
    dense = compression.merge(model)
    wanted = list(costs.gradients(dense, LOSS, batches(2)))
    new = held[PATH][1]
    for bond, squared in enumerate(np.square(s) for s in found):
        for index in range(len(squared)):
            kept = [np.array(core) for core in new]
            kept[bond] = kept[bond][..., index : index + 1]
            kept[bond + 1] = kept[bond + 1][index : index + 1]
            part = mpo.to_matrix(tuple(kept), None)
            changes = [-float(np.sum(part * slope[f"{PATH}/kernel"])) for slope in wanted]
            total = abs(sum(change + change**2 / 2 for change in changes))
            assert squared[index] == pytest.approx(total, rel=1e-2, abs=1e-5)


@pytest.mark.slow
def test_a_run_cuts_by_the_loss(tmp_path):
    def gradients(model):
        return costs.gradients(model, LOSS, batches(2))

    result = squeezing_run.run(tmp_path, measure="loss", max_phases=1, gradients=gradients)
    (cut,) = result.phases[1]["cuts"]
    assert cut["cost"] >= 0
    assert cut["saved"] > 0
    before, after = (phase["parameters"] for phase in result.phases)
    assert before - after == cut["saved"]
    with pytest.raises(ValueError, match=r"squeeze\.measure='loss' needs gradients"):
        squeezing_run.run(tmp_path / "without", measure="loss")


def test_a_matrix_that_the_loss_does_not_see_costs_nothing():
    model, held = canonical(chains())
    slopes = next(costs.gradients(model, LOSS, batches(1)))
    unseen = [{name: np.zeros_like(slope) for name, slope in slopes.items()}]
    assert all(not np.any(bond) for bond in costs.loss_spectra(held, unseen)[PATH])
