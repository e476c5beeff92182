"""The tables and figures of papers: published values beside ours; see `experiments.table`."""
