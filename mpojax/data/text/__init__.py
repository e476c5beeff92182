"""Plain and labelled text: documents, splits, batches."""
