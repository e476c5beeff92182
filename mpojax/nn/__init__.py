"""Flax NNX modules whose matrices are dense or MPO, with roles as variable types."""

from mpojax.nn.adapter import STDDEV as ADAPTER_STDDEV
from mpojax.nn.adapter import attach_adapters, fold_adapter, make_adapter
from mpojax.nn.adapter_settings import ADDED as ADDED_KINDS
from mpojax.nn.adapter_settings import AdapterSettings
from mpojax.nn.attention import SelfAttention
from mpojax.nn.dropout import dropout
from mpojax.nn.embed import Embed, MPOEmbed, embedding
from mpojax.nn.feed_forward import ACTIVATIONS, FeedForward
from mpojax.nn.grouped_attention import GroupedAttention
from mpojax.nn.initializers import random_cores
from mpojax.nn.linear import Dense, MPOLinear, linear, rebuilt_once
from mpojax.nn.moe.experts import ExpertFeedForward, random_expert_cores
from mpojax.nn.moe.routing import Router, RouterStatistics
from mpojax.nn.moe.settings import ExpertSettings
from mpojax.nn.norm import NORMS, LayerNorm, RMSNorm
from mpojax.nn.relative_bias import RelativeBias
from mpojax.nn.roles import (
    ROLES,
    AdapterParam,
    AuxiliaryCore,
    CentralCore,
    role_of,
)

__all__ = [
    "ACTIVATIONS",
    "ADAPTER_STDDEV",
    "ADDED_KINDS",
    "NORMS",
    "ROLES",
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
    "MPOEmbed",
    "MPOLinear",
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
