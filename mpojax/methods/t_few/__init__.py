"""T-Few: few-shot tuning of language models on tasks whose answers are a choice of texts.

Each answer is scored by its likelihood; besides that of the right answer, training raises its lead
over the others and lowers the others' tokens. After Liu et al. (2022, arXiv:2205.05638), who tune
vectors that rescale keys, values and inner activations (adapters of kind "rescale").
"""

from mpojax.methods.t_few.choices import (
    ChoiceSettings,
    choice_loss,
    encode,
    evaluator,
    log_likelihoods,
    scores,
)

__all__ = [
    "ChoiceSettings",
    "choice_loss",
    "encode",
    "evaluator",
    "log_likelihoods",
    "scores",
]
