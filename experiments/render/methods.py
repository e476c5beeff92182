"""Display name, colour, marker and dashes of every method, the same in every figure.

Related methods share a colour: black is dense and tuned as a whole, blue the MPO with all bonds,
sky blue the truncated one, orange a low rank, red what a paper proposes. What a random or otherwise
weaker control replaces has its colour, with dashes and a hollow marker.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from mpojax import figures


@dataclasses.dataclass(frozen=True)
class Look:
    """Look of one method.

    Attributes:
      label: display name.
      color: a name in `mpojax.figures.COLORS`.
      marker, line: of matplotlib.
      is_control: hollow markers.
    """

    label: str
    color: str
    marker: str = "o"
    line: str = "-"
    is_control: bool = False

    @property
    def style(self) -> dict[str, Any]:
        """Keywords of matplotlib."""
        color = figures.COLORS[self.color]
        face = "white" if self.is_control else color
        return {"color": color, "marker": self.marker, "markerfacecolor": face}


LOOKS: Mapping[str, Look] = {
    # Compression and fine-tuning.
    "dense": Look("dense", "black"),
    "full": Look("all parameters (dense)", "black"),
    "full_lfa": Look("MPO, all bonds, lightweight", "blue", "D"),
    "mpo_full": Look("MPO, all bonds, lightweight", "blue", "D"),
    "lfa": Look("MPO, lightweight (auxiliary cores)", "blue", "D"),
    "mpo": Look("MPO", "sky", "^"),
    "mpo_budget": Look("MPO at the budget, lightweight", "sky", "^"),
    "dir": Look("MPO truncated at once, lightweight", "sky", "^"),
    "mpop": Look("MPOP: squeezed, lightweight", "red", "v"),
    "low_rank": Look("low rank (SVD)", "orange", "s"),
    "svd": Look("low rank (SVD)", "orange", "s"),
    "svd_budget": Look("low rank (SVD), lightweight", "orange", "s"),
    "svd_aware": Look("low rank for the outputs", "orange", "s", "--", True),
    "searched": Look("searched factors for the outputs", "purple", "P"),
    # Sharing between layers.
    "MPOBERT": Look("central core shared (MPOBERT)", "red", "v"),
    "all shared": Look("all shared", "orange", "s"),
    "unshared": Look("nothing shared", "black"),
    "shared in 3 blocks": Look("shared in 3 blocks", "purple", "P"),
    "unshared, 3 layers": Look("nothing shared, 3 layers", "gray", "D"),
    "none": Look("no scaling", "gray"),
    "paper_text": Look("as in the paper's text", "red", "v"),
    "paper_algorithm": Look("as in the paper's algorithm", "orange", "s", "--"),
    "theory": Look("by theory", "blue", "D"),
    # Experts.
    "Switch": Look("dense experts (Switch)", "orange", "s"),
    "MPOE": Look("MPO experts, shared core masked (MPOE)", "red", "v"),
    "without sharing": Look("MPO experts, nothing shared", "green", "^"),
    "without mask": Look("MPO experts, no mask", "red", "v", "--", True),
    # Distillation; a number is that of the inner cores.
    "teacher": Look("teacher", "gray"),
    "kd": Look("dense student", "black"),
    "opdf": Look("chains, aligned (OPDF)", "red", "v"),
    "core": Look("chains, aligned, signs fixed", "purple", "P", is_control=True),
    "raw": Look("chains, aligned, nothing fixed", "red", "v", "--", True),
    "weight": Look("chains, matrices aligned", "green", "^"),
    # Adapters and searches for them; a number is the rank of query and value of the same size.
    "bitfit": Look("biases (BitFit)", "gray", "X"),
    "lora": Look("low rank (LoRA)", "orange", "s"),
    "bottleneck": Look("bottleneck adapters", "purple", "P"),
    "structured": Look("structured search", "red", "v"),
    "unstructured": Look("unstructured search", "green", "^"),
    "structured_mpo": Look("structured search, MPO adapters", "blue", "D"),
    "random_structured": Look("structured, random", "red", "v", "--", True),
    "random_unstructured": Look("unstructured, random", "green", "^", "--", True),
    "magnitude_structured": Look("structured, by magnitude", "red", "v", ":", True),
    "magnitude_unstructured": Look("unstructured, by magnitude", "green", "^", ":", True),
}


def look(name: Any, index: int = 0, names: Mapping[str, str] | None = None) -> Look:
    """The look of a method; `lora_4` and `MPOE, n 4` have those of `lora` and `MPOE`.

    Args:
      name: as runs call it.
      index: of an unknown method among those of its figure.
      names: display names of this figure alone.
    """
    name = str(name)
    stem = name if name in LOOKS else re.split(r"_\d+$|, ", name)[0]
    if stem in LOOKS:
        found = LOOKS[stem]
        rest = name.removeprefix(stem).lstrip("_, ")
        label = f"{found.label}, {rest}" if rest else found.label
    else:
        color = list(figures.COLORS)[index % len(figures.COLORS)]
        found = Look("", color, figures.style(index)["marker"])
        label = name.replace("_", " ")
    return dataclasses.replace(found, label=(names or {}).get(name, label))


# Names of columns on axes, with units.
AXES = {
    "total": "parameters of the model",
    "trained": "trained parameters",
    "updates": "trained parameters, without the head",
    "bond": "bond dimension (cap)",
    "relative_error": "relative error of the weights",
    "perplexity": "development perplexity per token",
    "test_perplexity": "test perplexity per token",
    "num_layers": "layers",
    "total_parameters": "parameters of the model",
    "gradient_norm": "norm of the gradient",
    "mlm_loss": "masked-LM loss, nats per token",
    "shots": "examples of each class",
    "optimizer.learning_rate": "learning rate",
}
METRICS = {
    "accuracy": "accuracy",
    "f1": "F1",
    "em": "exact match",
    "matthews": "Matthews correlation",
    "pearson": "Pearson correlation",
    "spearman": "Spearman correlation",
    "mlm_accuracy": "masked-LM accuracy",
}
TASKS = {"sst2": "SST-2", "cola": "CoLA", "mrpc": "MRPC", "rte": "RTE", "mnli": "MNLI"}


def axis(name: str, metric: str = "") -> tuple[str, float]:
    """(name with unit, factor by which values are multiplied) of a column.

    Args:
      name: of the column.
      metric: where the column is `metric`, which one it holds.
    """
    bare = metric if name == "metric" and metric else name.removeprefix("metrics.")
    if bare in METRICS:
        return f"{METRICS[bare]}, %", 100.0
    return AXES.get(name) or AXES.get(bare) or bare.replace("_", " "), 1.0
