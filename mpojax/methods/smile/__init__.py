"""SMILE: several fine-tunings of one base in one model, without data and without training.

Every dense matrix keeps the base's W and gets one low-rank expert for each fine-tuned model, the
truncated SVD of W_e - W; the router of a matrix asks which expert's directions see most of the
input. After Tang et al. (2024, arXiv:2408.10174); see `combine`. Beside it the ways to merge
that cost no parameters: the mean, task arithmetic, TIES; see `merged`.
"""

from mpojax.methods.smile.combining import REST, combine, with_head_of
from mpojax.methods.smile.merging import MERGES, merged

__all__ = ["MERGES", "REST", "combine", "merged", "with_head_of"]
