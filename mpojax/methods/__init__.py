"""Methods of papers: compositions of kernels, layers, models and training."""
