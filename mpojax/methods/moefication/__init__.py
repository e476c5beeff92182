"""MoEfication: the feed-forward blocks of a trained model, split into experts.

No parameter is added but those of routers: the neurons of a block are divided into groups of equal
size that fire together, and a router says which groups a token needs. After Zhang et al., "MoEfica-
tion: transformer feed-forward layers are mixtures of experts" (Findings of ACL 2022,
arXiv:2110.01786); see `moefy`.
"""

from mpojax.methods.moefication.clustering import CLUSTERS
from mpojax.methods.moefication.moefying import flops_per_token, moefy, num_experts, with_share
from mpojax.methods.moefication.routers import ROUTERS

__all__ = ["CLUSTERS", "ROUTERS", "flops_per_token", "moefy", "num_experts", "with_share"]
