"""Training steps that benchmarks measure or compile: runs of the papers' tables, and peers.

Models are described, not built; batches are shapes.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from configs.mpop import bert
from configs.opdf import bert as opdf_bert
from configs.pet_search import base as pet
from experiments.tables import training_cost
from mpojax import compression, models, nn, training
from mpojax.methods import mpobert, mpoe, opdf
from mpojax.training import objectives
from mpojax.training.tasks import pretraining


@dataclasses.dataclass(frozen=True)
class Workload:
    """A row of a table, or what it is compared with.

    Attributes:
      model: () -> (settings, shapes).
      batch: {name: shape} of the global batch.
      loss: of a step.
      steps: of the run.
      optimizer: its name.
      trainable: see `mpop.trainable_filter`.
      axes: most chips of a mesh axis; the others are on `data`.
    """

    model: Callable[[], tuple[models.Config, Mapping]]
    batch: Mapping[str, tuple[int, ...]]
    loss: Any
    steps: int
    optimizer: str = "adamw"
    trainable: str = "all"
    axes: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @property
    def rows(self) -> int:
        """Texts of a batch."""
        return self.batch["input_ids"][0]

    @property
    def length(self) -> int:
        """Tokens of a text."""
        return self.batch["input_ids"][1]

    def flops(self) -> float:
        """Model FLOPs of a step: those of the dense model, forward and twice that backward."""
        target = self.batch.get("decoder_input_ids", (0, 0))[1]
        return 3 * self.rows * training_cost.forward_flops(self.model()[0], self.length, target)

    def abstract_batch(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of the arrays of a batch."""
        return {n: jax.ShapeDtypeStruct(shape, _dtype(n)) for n, shape in self.batch.items()}

    def make_optimizer(self, model: models.Model) -> Any:
        """Its optimizer, for the roles of a model, abstract or not."""
        return training.make_optimizer({"name": self.optimizer}, training.roles(model), self.steps)

    def with_rows(self, rows: int) -> "Workload":
        """The same with another number of texts."""
        batch = {name: (rows, *shape[1:]) for name, shape in self.batch.items()}
        return dataclasses.replace(self, batch=batch)


def _dtype(name: str):
    return jnp.float32 if name.endswith("weights") else jnp.int32


def _pretrained(name: str, **changes) -> Workload:
    """MPOBERT's recipe: 10,000 steps of 4,096 rows of 128 tokens, 20 of them masked."""
    rows, length, masked = 4096, 128, 20
    names = ("mlm_positions", "mlm_labels", "mlm_weights")
    orders = ("sop_positions", "sop_labels", "sop_weights")
    batch = dict.fromkeys(("input_ids", "attention_mask", "token_type_ids"), (rows, length))
    batch |= dict.fromkeys(names, (rows, masked)) | dict.fromkeys(orders, (rows, 1))

    def model():
        config, shapes = mpobert.variant(name, vocab_size=30000, dtype="bfloat16", remat=True)
        return dataclasses.replace(config, **changes), {} if changes else shapes

    return Workload(model, batch, pretraining.pretraining_loss, 10_000, "lamb", axes={"fsdp": 8})


def _classifier(make: Callable[[], tuple[models.Config, Mapping]], trainable="all") -> Workload:
    """A run on SST-2 of 3 epochs of 67,349 texts, as MPOP tunes: 32 rows of 128 tokens."""
    config = bert.get_config("dense,sst2")
    names = ("input_ids", "attention_mask", "token_type_ids")
    batch = dict.fromkeys(names, (config.batch_size, config.max_length))
    batch |= {"labels": (config.batch_size,)}

    def model():
        settings, shapes = make()
        return dataclasses.replace(settings, num_labels=2, dtype="bfloat16"), shapes

    loss = objectives.classification_loss
    return Workload(model, batch, loss, config.steps, trainable=trainable)


def _mpop(variant: str) -> Workload:
    config = bert.get_config(f"{variant},sst2")
    rules = [(pattern, dict(fields)) for pattern, fields in config.rules]

    def make():
        settings = models.PRESETS[config.architecture]
        return settings, compression.planned_shapes(settings, rules) if rules else {}

    return _classifier(make, config.trainable)


def _student(chains: bool) -> Workload:
    """Six of BERT's layers, in chains for SST-2 as OPDF has them, or dense."""
    settings = dataclasses.replace(models.PRESETS["bert-base-uncased"], num_layers=6)
    inner = opdf_bert.TASKS["sst2"].num_inner_cores
    asked = opdf.OPDFSettings(num_inner_cores=inner)
    return _classifier(lambda: (settings, opdf.planned_shapes(settings, asked) if chains else {}))


def _superset() -> Workload:
    """BERT with the adapters that a PET search prunes."""
    adapters = tuple(pet.get_config().adapters)
    settings = models.PRESETS["bert-base-uncased"]
    low_ranks = [(pattern, nn.AdapterSettings(**dict(f))) for pattern, f in adapters if "rank" in f]
    settings = dataclasses.replace(settings, adapters=tuple(low_ranks))
    return _classifier(lambda: (settings, {}), "adapters")


def _language(preset: str, variant: str, rows: int, length: int, steps: int) -> Workload:
    """A decoder or an encoder-decoder with experts; all of them on an axis of the mesh."""
    names = ["input_ids", "targets", "target_weights"]
    names += ["decoder_input_ids"] if preset.startswith("t5") else []

    def model():
        settings, shapes = mpoe.planned(preset, variant)
        return dataclasses.replace(settings, dtype="bfloat16", remat=True), shapes

    batch = dict.fromkeys(names, (rows, length))
    axes = {} if variant == "dense" else {"expert": 8}
    return Workload(model, batch, training.language_model_loss(), steps, axes=axes)


WORKLOADS: dict[str, Workload] = {
    "MPOBERT12": _pretrained("mpobert12"),
    "MPOBERT24": _pretrained("mpobert24"),
    "MPOBERT48": _pretrained("mpobert48"),
    "MPOBERT48+": _pretrained("mpobert48plus"),
    "48 layers, nothing shared": _pretrained("mpobert48", layer_groups=None),
    "MPOP BERT, lightweight": _mpop("full_lfa"),
    "MPOP BERT, all trained": _mpop("full"),
    "BERT dense, all trained": _mpop("dense"),
    "OPDF, BERT's student in chains": _student(chains=True),
    "BERT's student, dense": _student(chains=False),
    "PET search, BERT's super-set": _superset(),
    "MPOE-8 GPT-2": _language("gpt2", "mpoe8", 64, 1024, 10_000),
    "Switch-8 GPT-2": _language("gpt2", "switch8", 64, 1024, 10_000),
    "MPOE-16 GPT-2": _language("gpt2", "mpoe16", 64, 1024, 10_000),
    "MPOE-8 T5-base": _language("t5-base", "mpoe8", 256, 128, 10_000),
    "Switch-8 T5-base": _language("t5-base", "switch8", 256, 128, 10_000),
    "MPOE-16 T5-base": _language("t5-base", "mpoe16", 256, 128, 10_000),
    "MPOE-8 T5-large": _language("t5-large", "mpoe8", 512, 512, 10_000),
}
