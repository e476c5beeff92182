"""Flax NNX modules whose matrices are dense or MPO, with roles as variable types."""

from mpojax.nn.adapters.modules import STDDEV as ADAPTER_STDDEV
from mpojax.nn.adapters.modules import RoutedAdapter
from mpojax.nn.adapters.settings import ADDED as ADDED_KINDS
from mpojax.nn.adapters.settings import (
    AdapterSettings,
    attach_adapters,
    make_adapter,
    merge_adapter,
    submodule,
)
from mpojax.nn.attention import Attention, KeysValues
from mpojax.nn.embed import Embed, MPOEmbed, embedding
from mpojax.nn.feed_forward import ACTIVATIONS, FeedForward
from mpojax.nn.functional import dropout, split_or_none
from mpojax.nn.linear import Dense, MPOLinear, linear, rebuilt_once
from mpojax.nn.masks import Mask
from mpojax.nn.masks import of_keys as mask_of_keys
from mpojax.nn.masks import of_segments as mask_of_segments
from mpojax.nn.masks import stack as stack_masks
from mpojax.nn.moe.experts import ExpertFeedForward, random_expert_cores
from mpojax.nn.moe.routing import Router, RouterStatistics
from mpojax.nn.moe.settings import ExpertSettings
from mpojax.nn.norm import NORMS, LayerNorm, RMSNorm
from mpojax.nn.parameters import (
    ROLES,
    STORED,
    AdapterParam,
    AuxiliaryCore,
    CentralCore,
    ColumnOrder,
    random_cores,
    role_of,
)
from mpojax.nn.positions import RelativeBias, RopeScaling, Rotary, log_distances

__all__ = [
    "ACTIVATIONS",
    "ADAPTER_STDDEV",
    "ADDED_KINDS",
    "NORMS",
    "ROLES",
    "STORED",
    "AdapterParam",
    "AdapterSettings",
    "Attention",
    "AuxiliaryCore",
    "CentralCore",
    "ColumnOrder",
    "Dense",
    "Embed",
    "ExpertFeedForward",
    "ExpertSettings",
    "FeedForward",
    "KeysValues",
    "LayerNorm",
    "MPOEmbed",
    "MPOLinear",
    "Mask",
    "RMSNorm",
    "RelativeBias",
    "RopeScaling",
    "Rotary",
    "RoutedAdapter",
    "Router",
    "RouterStatistics",
    "attach_adapters",
    "dropout",
    "embedding",
    "linear",
    "log_distances",
    "make_adapter",
    "mask_of_keys",
    "mask_of_segments",
    "merge_adapter",
    "random_cores",
    "random_expert_cores",
    "rebuilt_once",
    "role_of",
    "split_or_none",
    "stack_masks",
    "submodule",
]
