"""PET search: a super-set of adapters, pruned while it trains to a budget of parameters."""
