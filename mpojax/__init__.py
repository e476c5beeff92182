"""mpojax: transformers in matrix product operator (MPO, tensor-train matrix) form.

A weight matrix becomes a chain of small tensors: a large central core and small auxiliary cores
around it. Layers of the library, each importing only from those above it:

    mpojax.mpo       pure functions on cores
    mpojax.layers    Flax NNX modules
    mpojax.models    transformers built from the layers
    mpojax.interop   Hugging Face folders, compress / merge, weight files
    mpojax.data      texts, tokenizers, batches
    mpojax.training  one training loop
    mpojax.methods   the papers, as compositions of the above

`import mpojax` loads only the kernels; import the other parts by name.
"""

from mpojax import mpo
from mpojax.version import __version__

__all__ = ["__version__", "mpo"]
