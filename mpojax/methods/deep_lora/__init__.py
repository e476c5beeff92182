"""Deep LoRA: updates of three and more factors, which find their rank themselves.

An update W + D C U of small orthogonal factors learns inside a subspace that the first gradient
tells; it starts there, and at the end is cut to the rank it has found. After Yaras et al. (2024,
arXiv:2406.04112). It is an adapter of kind "mpo" whose outer cores have all of the matrix' sizes.
"""

from mpojax.methods.deep_lora.updates import (
    DeepLoRASettings,
    bases,
    compressed,
    first_gradients,
    started,
)

__all__ = ["DeepLoRASettings", "bases", "compressed", "first_gradients", "started"]
