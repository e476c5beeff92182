"""Healing: a short tuning on plain text that brings back the quality of a compressed decoder.

What compression took from a matrix in closed form, a few hundred steps give back in part: the cores
learn, next to the norms, what their dense original says of the next token (distillation), what the
text says (labels), or both. The embeddings and what else is dense stay as they are, and so does the
size.

    loss = a KL(p || q) + (1 - a) (-log q(next token))

p and q are the distributions of the original and of the compressed model at each position, over the
whole vocabulary and at temperature 1; a is `distill_weight`.
"""

from mpojax.methods.healing.healing import OPTIMIZER, TRAINABLE, batches_of, heal
from mpojax.methods.healing.objective import DISTILL_WEIGHT, Learning, healing_loss, learning

__all__ = [
    "DISTILL_WEIGHT",
    "OPTIMIZER",
    "TRAINABLE",
    "Learning",
    "batches_of",
    "heal",
    "healing_loss",
    "learning",
]
