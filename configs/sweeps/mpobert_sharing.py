r"""What layers should share: nothing, central cores, or everything, at equal depth and equal size.

    python -m tools.texts.fetch --out=TEXTS
    python -m tools.prepare_corpus --text=TEXTS --out=CORPUS --vocab_size=512
    SWEEP="python -m experiments.sweep --config.cell.corpus=CORPUS \\
        --config=configs/sweeps/mpobert_sharing.py"
    $SWEEP:teacher --workdir=runs/sharing/teacher
    $SWEEP:main --workdir=runs/sharing/main
    $SWEEP:depths --workdir=runs/sharing/depths
    $SWEEP:starts --config.cell.start.teacher=runs/sharing/teacher/cells/seed=0/model \\
        --workdir=runs/sharing/starts
    python -m experiments.render mpobert_sharing --runs=runs/sharing   # main and depths
    python -m experiments.render mpobert_starts --runs=runs/sharing

Real text (Brown, Wikipedia articles, Austen, WordNet); hidden size 64, sized for two cores. The
vocabulary is small so that the layers hold most parameters, as in the paper's models.
All models start from scratch and see equally many tokens, in an order that the seed decides.
`main`: 12 layers, three seeds, with two models of as many parameters as the MPOBERT. `depths`: 6,
24 and 48 layers, one seed. `starts`: 24 and 48 layers from a trained encoder of 12 layers that are
one (`teacher`), by how the auxiliary cores of the layers beyond the teacher's are scaled.
`smoke`: every kind for two steps.
"""

import ml_collections

from configs.mpobert import pretraining

SIZES = ("teacher", "main", "depths", "starts", "smoke")
# Name -> fields. The last two have about as many parameters as the MPOBERT of 12 layers: dense
# layers shared in three blocks, and three dense layers.
KINDS = {
    "MPOBERT": {"architecture": "mpobert"},
    "all shared": {"architecture": "shared"},
    "unshared": {"architecture": "unshared"},
}
EQUAL_SIZE = {
    "shared in 3 blocks": {"architecture": "shared", "model.groups": 3},
    "unshared, 3 layers": {"architecture": "unshared", "model.num_layers": 3},
}
SCALINGS = ("none", "paper_text", "paper_algorithm", "theory")


def get_config(size: str = "main") -> ml_collections.ConfigDict:
    """`size` is a name in `SIZES`."""
    if size not in SIZES:
        raise ValueError(f"configs/sweeps/mpobert_sharing.py:{size}: one of {', '.join(SIZES)}.")
    config = ml_collections.ConfigDict()
    config.cell = cell = _cell()
    config.seeds, config.depths, config.plots = (0,), (6, 24, 48), ()
    kinds = {name: {"variant": name, **fields} for name, fields in KINDS.items()}
    more = {name: {"variant": name, **fields} for name, fields in EQUAL_SIZE.items()}
    size_plot = {"x": "total", "y": "metric", "lines": "kind"}
    if size == "teacher":
        cell.architecture, cell.variant, cell.steps = "shared", "teacher", 2000
        config.axes = (("seed", "seeds"),)
    elif size == "main":
        config.seeds, config.plots = (0, 1, 2), (size_plot,)
        config.axes = (("seed", "seeds"), ("kind", kinds | more))
    elif size == "depths":
        config.plots = (size_plot,)
        config.axes = (("model.num_layers", "depths"), ("kind", kinds))
    elif size == "starts":
        config.depths = (24, 48)
        cell.variant, cell.start.kind, cell.start.gauge = "MPOBERT", "teacher", "central"
        cell.steps, cell.eval_every, cell.statistics_every = 100, 20, 10
        cell.optimizer.name, cell.optimizer.learning_rate = "adamw", 1e-3
        scalings = {name: {"start.scaling": name} for name in SCALINGS}
        config.axes = (("model.num_layers", "depths"), ("scaling", scalings))
    else:
        cell.steps, cell.eval_every, cell.eval_rows, cell.model.num_layers = 2, 2, 16, 3
        config.axes = (("kind", kinds | more),)
    return config


def _cell() -> ml_collections.ConfigDict:
    config = pretraining.get_config()
    config.model.hidden_size, config.model.embedding_size = 64, 64
    config.model.num_heads = 2
    config.model.max_positions = 64
    config.start.stddev = 0.07  # 0.02 at a width of 768, by the root of the width
    config.length, config.batch_size, config.steps = 64, 16, 400
    # More masks than usual, of single tokens: more to learn from each of few tokens.
    config.masking.rate, config.masking.whole_words = 0.3, False
    config.sop = False
    # Muon leaves the plateau of word frequencies several times sooner than AdamW. Of chains it
    # treats the central core as the matrix that it is between identity cores: they start as such.
    config.optimizer.name, config.optimizer.learning_rate = "muon", 5e-3
    config.optimizer.muon_roles = ("other", "central")
    config.optimizer.role_learning_rates = {"auxiliary": 1e-3}
    config.start.gauge = "identity"
    config.remat = False
    config.eval_every, config.eval_rows = 50, 384
    config.log_every, config.checkpoint_every, config.samples_every = 10, 200, 500
    return config
