"""Flax NNX modules whose matrices are dense or MPO, with roles as variable types."""

from mpojax.layers.adapter import DEVIATION as ADAPTER_DEVIATION
from mpojax.layers.adapter import LowRankAdapter, attach_adapters, fold_adapter, make_adapter
from mpojax.layers.adapter_settings import ADDED as ADDED_KINDS
from mpojax.layers.adapter_settings import AdapterSettings
from mpojax.layers.attention import SelfAttention
from mpojax.layers.dropout import dropout
from mpojax.layers.embed import Embed, MPOEmbed, embedding
from mpojax.layers.expert_settings import ExpertSettings
from mpojax.layers.experts import ExpertFeedForward, random_expert_cores
from mpojax.layers.feed_forward import ACTIVATIONS, FeedForward
from mpojax.layers.grouped_attention import GroupedAttention
from mpojax.layers.initializers import random_cores
from mpojax.layers.linear import Dense, MPOLinear, linear, rebuilt_once
from mpojax.layers.norm import NORMS, LayerNorm, NoNorm, RMSNorm
from mpojax.layers.relative_bias import RelativeBias
from mpojax.layers.roles import (
    ROLE_TYPES,
    ROLES,
    AdapterParam,
    AuxiliaryCore,
    CentralCore,
    role_of,
)
from mpojax.layers.routing import Router, RouterStatistics

__all__ = [
    "ACTIVATIONS",
    "ADAPTER_DEVIATION",
    "ADDED_KINDS",
    "NORMS",
    "ROLES",
    "ROLE_TYPES",
    "AdapterParam",
    "AdapterSettings",
    "AuxiliaryCore",
    "CentralCore",
    "Dense",
    "Embed",
    "ExpertFeedForward",
    "ExpertSettings",
    "FeedForward",
    "GroupedAttention",
    "LayerNorm",
    "LowRankAdapter",
    "MPOEmbed",
    "MPOLinear",
    "NoNorm",
    "RMSNorm",
    "RelativeBias",
    "Router",
    "RouterStatistics",
    "SelfAttention",
    "attach_adapters",
    "dropout",
    "embedding",
    "fold_adapter",
    "linear",
    "make_adapter",
    "random_cores",
    "random_expert_cores",
    "rebuilt_once",
    "role_of",
]
