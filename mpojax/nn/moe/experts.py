"""A feed-forward block of experts: dense copies, or chains that share their central core (MPOE)."""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from mpojax import mpo
from mpojax.nn.feed_forward import ACTIVATIONS, FeedForward
from mpojax.nn.linear import linear
from mpojax.nn.moe import dispatch, maps, parallel
from mpojax.nn.moe.maps import Block
from mpojax.nn.moe.routing import Router, RouterStatistics, Routing, route
from mpojax.nn.moe.settings import ExpertSettings
from mpojax.nn.parameters import AuxiliaryCore, CentralCore, normal

_SHARED = "shared_expert/"  # what the paths of the dense block for all tokens begin with


class ExpertFeedForward(nnx.Module):
    """y = sum over a token's experts e of gate_e * down_e(activation(up_e(x))).

    "Parameter-Efficient Mixture-of-Experts Architecture for Pre-trained Language Models" (COLING
    2022) where maps have shapes; Switch or top-2 experts where they do not. Gated blocks are
    down_e(activation(gate_e(x)) * up_e(x)).

    With `settings.shared_size`, plus sigmoid(w x) * shared_expert(x), a dense block for all tokens.

    Variables that each expert owns lie under experts/<map>/ with a leading axis of experts, those
    that all share under shared/<map>/: kernel, bias, cores/<k>.
    """

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        activation: str,
        shapes: Mapping[str, mpo.MPOShape] | None,
        settings: ExpertSettings,
        *,
        gated: bool = False,
        use_bias: bool = True,
        inner_dropout: float = 0.0,
        dtype: str = "float32",
        rngs: nnx.Rngs,
    ):
        """Draws router and matrices, the latter of variance 1 / in_features.

        Args:
          hidden_size: width of the tokens.
          intermediate_size: width inside an expert, unless `settings` say another.
          activation: a key of `ACTIVATIONS`.
          shapes: MPO form of any of up, gate and down, and of shared_expert/up, ...; maps without
            one are dense.
          settings: experts, router, dispatch.
          gated: whether there is a map `gate`.
          use_bias: whether the maps have biases; they start at 0.
          inner_dropout: rate between the matrices, when a dropout key is given.
          dtype: compute dtype; parameters and router are float32.
          rngs: draws.

        Raises:
          ValueError: an unknown activation, or a shape of an unknown map or of other sizes.
        """
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation {activation!r} is not one of {sorted(ACTIVATIONS)}.")
        width = settings.intermediate_size or intermediate_size
        sizes = {
            "up": (hidden_size, width),
            "gate": (hidden_size, width),
            "down": (width, hidden_size),
        }
        if not gated:
            del sizes["gate"]
        shapes = dict(shapes or {})
        names = [name for name in shapes if name.startswith(_SHARED) and settings.shared_size]
        of_shared = {name.removeprefix(_SHARED): shapes.pop(name) for name in names}
        shapes = _checked_shapes(shapes, sizes, settings)
        self.block = Block(settings, activation, gated, shapes, inner_dropout)
        self.hidden_size = hidden_size
        self.dtype = dtype
        self.router = Router(hidden_size, settings, rngs=rngs)
        experts, shared = {}, {}
        for name, size in sizes.items():
            own, common = _random_map(
                rngs.params(), size, dict(shapes).get(name), settings, use_bias, name
            )
            experts[name] = own
            if common:
                shared[name] = common
        self.experts = _as_dict(experts)
        self.shared = _as_dict(shared)
        if settings.shared_size is not None:
            more = {"use_bias": use_bias, "inner_dropout": inner_dropout, "gated": gated}
            self.shared_expert = FeedForward(
                *(hidden_size, settings.shared_size, activation, of_shared),
                **more,
                dtype=dtype,
                rngs=rngs,
            )
            self.shared_expert_gate = linear(hidden_size, 1, None, False, dtype=dtype, rngs=rngs)

    @property
    def shapes(self) -> dict[str, mpo.MPOShape]:
        """MPO form of the maps that have one."""
        return dict(self.block.shapes)

    @property
    def settings(self) -> ExpertSettings:
        """Experts, router, dispatch."""
        return self.block.settings

    @property
    def _parameters(self):
        """(own, shared) as arrays."""
        return jax.tree.map(
            lambda variable: variable[...],
            (self.experts, self.shared),
            is_leaf=lambda part: isinstance(part, nnx.Variable),
        )

    def __call__(
        self,
        x: jax.Array,
        mask: jax.Array | None = None,
        dropout_key: jax.Array | None = None,
        router_key: jax.Array | None = None,
    ) -> tuple[jax.Array, RouterStatistics]:
        """Maps (..., hidden) to (..., hidden) in the compute dtype.

        Args:
          x: tokens.
          mask: (...) booleans, False for padding, which goes to no expert, counts nowhere and comes
            out as 0 of the experts.
          dropout_key: turns `inner_dropout` on.
          router_key: draws the noise of the router "noisy_topk".

        Raises:
          ValueError: `x` has another last axis, or `mask` another shape than its leading axes.
        """
        if x.shape[-1] != self.hidden_size:
            raise ValueError(
                f"x has shape {x.shape}; its last axis must be hidden_size={self.hidden_size}."
            )
        if mask is not None and mask.shape != x.shape[:-1]:
            raise ValueError(
                f"mask has shape {mask.shape}; it must be that of the tokens, {x.shape[:-1]}."
            )
        tokens = jnp.asarray(x).reshape(-1, self.hidden_size)
        mask = None if mask is None else jnp.asarray(mask).reshape(-1)
        routing = self.routed(tokens, mask, router_key)
        y, kept = parallel.run(
            self.block,
            self._parameters,
            tokens.astype(self.dtype),
            routing.experts,
            routing.gates,
            dropout_key,
        )
        statistics = routing.statistics.with_kept(kept, self.settings.experts_per_token)
        y = y.reshape(*x.shape[:-1], self.hidden_size)
        if hasattr(self, "shared_expert"):
            # y + sigmoid(w x) shared(x), whichever experts were chosen (Qwen-MoE).
            share = jax.nn.sigmoid(self.shared_expert_gate(x))
            y = y + share * self.shared_expert(x, dropout_key)
        return y, statistics

    def routed(self, tokens: jax.Array, mask=None, key=None) -> Routing:
        """Assignments of (T, hidden) tokens; arguments as of `Router`."""
        if self.settings.router == "oracle":
            return route(self._activity(tokens), self.settings, mask)
        return self.router(tokens, mask, key)

    def _activity(self, tokens: jax.Array) -> jax.Array:
        """(T, experts): sum of the sizes of what `down` of each expert would read."""
        number, total = self.settings.number, tokens.shape[0]
        everywhere = dispatch.make_layout(jnp.zeros((total, 1), jnp.int32), number, "dense")
        rows = dispatch.gather(everywhere, tokens.astype(self.dtype))
        inner = maps.inner(self.block, self._parameters, everywhere, rows, number * total)
        # (number T, width) -> (T, number)
        return jnp.abs(inner.astype(jnp.float32)).reshape(number, total, -1).sum(-1).T

    def entering(
        self, x: jax.Array, mask: jax.Array, capacity: int
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """What enters the matrices of each expert: of `up` and `gate`, and of `down`.

        Args:
          x: (..., hidden), tokens.
          mask: (...) booleans, False for those that do not count.
          capacity: rows of an expert, at least as many as the tokens that any of them gets.

        Returns:
          (experts, capacity, hidden) and (experts, capacity, width), 0 where a row is empty, and
          (experts,) int32: rows that are filled.
        """
        tokens, number = x.reshape(-1, self.hidden_size), self.settings.number
        chosen = self.routed(tokens, mask.reshape(-1)).experts
        layout = dispatch.make_layout(chosen, number, "capacity", capacity=capacity)
        rows = dispatch.gather(layout, tokens.astype(self.dtype))
        inner = maps.inner(self.block, self._parameters, layout, rows, chosen.size)
        filled = jnp.arange(capacity, dtype=jnp.int32)[None] < layout.counts[:, None]
        shaped = (part.reshape(number, capacity, -1) for part in (rows, inner))
        return *(jnp.where(filled[..., None], part, 0) for part in shaped), layout.counts


def _checked_shapes(shapes, sizes, settings):
    for name, shape in shapes.items():
        if name not in sizes:
            raise ValueError(f"shapes has a map {name!r}; the block has {', '.join(sizes)}.")
        if (shape.in_features, shape.out_features) != sizes[name]:
            raise ValueError(
                f"shape of {name!r} is of a matrix {shape.in_features} x {shape.out_features}; the "
                f"block needs {sizes[name][0]} x {sizes[name][1]}."
            )
    if alone := [name for name in settings.shared_base if name not in shapes]:
        raise ValueError(
            f"experts: shared_base names {alone[0]!r}, which has no shape: next to a common matrix "
            "experts own chains."
        )
    return tuple(sorted(shapes.items()))  # hashable, as a static part of a module must be


def random_expert_cores(
    key: jax.Array, shape: mpo.MPOShape, variance: float, number: int, share_central: bool = True
) -> tuple[jax.Array, ...]:
    """Cores of experts whose rebuilt matrices have entries of the given variance; see
    `random_cores`. Experts are independent but for a shared central core.
    """
    # var(W) = prod(bonds) prod_k var(core_k), every core the same share.
    share = (variance / math.prod(shape.bond_dims)) ** (1.0 / shape.num_cores)
    cores = []
    for index, core in enumerate(shape.core_shapes):
        shared = share_central and index == shape.central
        size = core if shared else (number, *core)
        draw = jax.random.normal(jax.random.fold_in(key, index), size, jnp.float32)
        # Scaled to exactly that mean square: outer cores are too small for it to hold by itself.
        square = jnp.mean(jnp.square(draw), axis=(-4, -3, -2, -1), keepdims=True)
        cores.append(draw * jnp.sqrt(share / square))
    return tuple(cores)


def _random_map(key, size, shape, settings, use_bias, name):
    """(variables of each expert, variables all experts share) of one map."""
    own, common = {}, {}
    variance = 1.0 / size[0]
    share_central = settings.shares_core(name)
    if name in settings.shared_base:
        variance /= 2  # half of it is that of the base
        common["kernel"] = nnx.Param(normal(jax.random.fold_in(key, 1), size, variance))
    if shape is None:
        kernel = normal(key, (settings.number, *size), variance)
        own["kernel"] = nnx.Param(kernel)
    else:
        cores = random_expert_cores(key, shape, variance, settings.number, share_central)
        own["cores"] = {}
        for index, core in enumerate(cores):
            if index != shape.central:
                own["cores"][str(index)] = AuxiliaryCore(core)
            elif share_central:
                common["cores"] = {str(index): CentralCore(core)}
            else:
                own["cores"][str(index)] = CentralCore(core)
    if use_bias:
        if settings.share_bias:
            common["bias"] = nnx.Param(jnp.zeros((size[1],), jnp.float32))
        else:
            own["bias"] = nnx.Param(jnp.zeros((settings.number, size[1]), jnp.float32))
    return own, common


def _as_dict(tree):
    if not isinstance(tree, dict):
        return tree
    return nnx.Dict({key: _as_dict(value) for key, value in tree.items()})
