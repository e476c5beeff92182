"""PET search: a super-set of adapters, pruned while it trains to a budget of parameters.

After Lawton et al., "Neural Architecture Search for Parameter-Efficient Fine-tuning of Large
Pre-trained Language Models" (Findings of ACL 2023): the idea is theirs, formulas and settings are
our own.
"""

from mpojax.methods.pet.search import Search, SearchSettings, masked

__all__ = ["Search", "SearchSettings", "masked"]
