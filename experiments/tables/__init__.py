"""The tables and figures of papers: published values next to ours; see `experiments.table`."""
