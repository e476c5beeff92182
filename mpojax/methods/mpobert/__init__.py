"""MPOBERT: very deep encoders whose layers share central cores (Findings of EMNLP 2023, "Enhancing
Scalability of Pre-trained Language Models via Efficient Parameter Sharing", pp. 13771-13785).

The six matrices of every layer are chains at full bonds. The central core of each is stored once
and used by all layers, or by those of one block in the "+" variants; auxiliary cores and low-rank
adapters belong to the layer; biases and norms are shared by default, as in the released code. All
else is ALBERT: a narrow token embedding with a map to the hidden size, and heads for masked words
and for the order of sentences. How such a model starts: `mpojax.methods.mpobert.start`.
"""

from mpojax.methods.mpobert.sharing import (
    VARIANTS,
    chain,
    settings,
    variant,
)

__all__ = ["VARIANTS", "chain", "settings", "variant"]
