"""What layers should share: nothing, central cores, or everything, at equal depth and equal size.

    python -m tools.fetch_texts --out=TEXTS
    python -m tools.prepare_corpus --text=TEXTS --out=CORPUS --vocab_size=512
    python -m experiments.sweep --config=configs/sweeps/mpobert_sharing.py:main \
        --config.cell.corpus=CORPUS --workdir=runs/sharing/main
    python -m experiments.sweep --config=configs/sweeps/mpobert_sharing.py:depths \
        --config.cell.corpus=CORPUS --workdir=runs/sharing/depths
    python -m experiments.sweep --config=configs/sweeps/mpobert_sharing.py:starts \
        --config.cell.corpus=CORPUS --config.cell.start.teacher=TEACHER \
        --workdir=runs/sharing/starts
    python -m tools.plot_sharing --runs=runs/sharing --out=experiments/results/mpobert_sharing

Real text (Brown, Wikipedia articles, Austen, WordNet), all models from scratch with the same tokens
in the same order; hidden size 64, sized for two cores. The vocabulary is small so that the layers,
not the tables, hold most numbers, as in the paper's models. `main`: 12 layers, three seeds, with
two models of as many parameters as the MPOBERT. `depths`: 6, 24 and 48 layers, one seed. `starts`:
24 and 48 layers from a trained encoder of 12 shared layers (`model/` of a cell of `main`), by how
the auxiliary cores of layers beyond it are scaled. `smoke` runs every kind for two steps.
"""

import ml_collections

from configs.mpobert import pretraining

SIZES = ("main", "depths", "starts", "smoke")
STEPS = 800
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
    """`size` is "main", "depths", "starts" or "smoke"."""
    if size not in SIZES:
        raise ValueError(f"configs/sweeps/mpobert_sharing.py:{size}: one of {', '.join(SIZES)}.")
    config = ml_collections.ConfigDict()
    config.runner = "pretrain"
    config.cell = _cell()
    config.seeds, config.depths = (0, 1, 2), (6, 24, 48)
    kinds = {name: {"variant": name, **fields} for name, fields in KINDS.items()}
    more = {name: {"variant": name, **fields} for name, fields in EQUAL_SIZE.items()}
    config.plots = ()
    if size == "main":
        config.axes = (("seed", "seeds"), ("kind", kinds | more))
        config.plots = ({"x": "total", "y": "metric", "lines": "kind"},)
    elif size == "depths":
        config.axes = (("model.num_layers", "depths"), ("kind", kinds))
        config.plots = ({"x": "total", "y": "metric", "lines": "kind"},)
    elif size == "starts":
        config.depths = (24, 48)
        config.cell.start.kind, config.cell.variant = "teacher", "MPOBERT"
        config.cell.steps, config.cell.eval_every = 100, 20
        config.cell.optimizer.learning_rate = 1e-3
        config.cell.statistics_every = 10
        scalings = {name: {"start.scaling": name} for name in SCALINGS}
        config.axes = (("model.num_layers", "depths"), ("scaling", scalings))
    else:
        config.cell.steps, config.cell.eval_every, config.cell.eval_rows = 2, 2, 16
        config.cell.model.num_layers = 3
        more["shared in 3 blocks"]["model.groups"] = 3
        config.axes = (("kind", kinds | more),)
    return config


def _cell() -> ml_collections.ConfigDict:
    config = pretraining.get_config()
    config.model.hidden_size, config.model.embedding_size = 64, 64
    config.model.num_heads = 2
    config.model.max_positions = 64
    config.start.deviation = 0.07  # 0.02 at a width of 768, by the root of the width
    config.length, config.batch_size, config.steps = 64, 16, STEPS
    # More masks than usual, of single tokens: more to learn from each of few tokens.
    config.masking.rate, config.masking.whole_words = 0.3, False
    config.sop = False
    # Muon leaves the plateau of word frequencies several times sooner than AdamW here; it works on
    # dense matrices and, each core as one matrix, on chains.
    config.optimizer.name = "muon"
    config.optimizer.muon_roles = ("other", "central", "auxiliary")
    config.optimizer.learning_rate = 4e-3
    config.remat = False
    config.eval_every, config.eval_rows = 100, 384
    config.checkpoint_every, config.samples_every = 200, 500
    return config
