"""The function of a block of experts on arrays: `ExpertFeedForward` without its module.

Parameters are two dicts {map: {"kernel" | "bias" | "cores"}}: what each expert owns, with a leading
axis of experts, and what all experts share.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from mpojax import devices, mpo
from mpojax.nn.feed_forward import ACTIVATIONS
from mpojax.nn.functional import dropout
from mpojax.nn.moe import dispatch, grouped_matmul
from mpojax.nn.moe.settings import ExpertSettings


@dataclasses.dataclass(frozen=True)
class Block:
    """Static properties of a block of experts.

    Attributes:
      settings: experts, router, dispatch, structure.
      activation: a key of `ACTIVATIONS`.
      gated: whether there is a map `gate`.
      shapes: (map, MPO form) pairs of the maps that have one.
      inner_dropout: rate between the matrices.
    """

    settings: ExpertSettings
    activation: str
    gated: bool
    shapes: tuple[tuple[str, mpo.MPOShape], ...]
    inner_dropout: float

    @property
    def kind(self) -> str:
        """Kind of layout.

        Without a capacity "ragged" where the backend has a kernel for it; CPU multiplies every
        token with every expert in its stead, and takes blocks.
        """
        if self.settings.dispatch != "auto":
            return self.settings.dispatch
        if self.settings.capacity_factor is not None:
            return "capacity"
        return "block" if devices.platform() == "cpu" else "ragged"

    def capacity(self, tokens: int) -> int:
        """Most tokens that an expert takes: no more than all, as it sees a token at most once."""
        factor, k = self.settings.capacity_factor, self.settings.experts_per_token
        if factor is None:
            return tokens
        # C = ceil(factor * T k / experts), and no more than all T.
        return min(tokens, dispatch.capacity_of(tokens * k, self.settings.number, factor))


def run(
    block: Block, parameters, x: jax.Array, experts: jax.Array, gates: jax.Array, key
) -> tuple[jax.Array, jax.Array]:
    """Sends tokens to their experts.

    Args:
      block: static description.
      parameters: (own, shared).
      x: (T, hidden) in the compute dtype.
      experts: (T, k); the number of experts for padding.
      gates: (T, k).
      key: dropout key, or None.

    Returns:
      (T, hidden) and () int32, how many assignments were not dropped.
    """
    if x.shape[0] == 0:
        return x, jnp.zeros((), jnp.int32)
    number, capacity = block.settings.number, block.capacity(x.shape[0])
    # Fewer assignments than experts (decoding): only the experts that are chosen are read.
    if experts.size < number and block.kind != "dense":
        layout, chosen = dispatch.layout_of_few(experts, number, capacity)
        own, shared = parameters
        parameters = jax.tree.map(lambda p: p[chosen], own), shared
    else:
        layout = dispatch.make_layout(experts, number, block.kind, capacity=capacity)
    rows = maps(block, parameters, layout, dispatch.gather(layout, x), experts.size, key)
    return dispatch.combine(layout, rows, gates.astype(rows.dtype)), layout.kept()


def maps(block: Block, parameters, layout: dispatch.Layout, rows: jax.Array, tokens: int, key):
    """down(activation(up(rows))) with each row's expert; `tokens` is how many rows to expect."""
    y = inner(block, parameters, layout, rows, tokens)
    return _apply_map(
        *(block, parameters, layout, tokens, "down"), dropout(y, block.inner_dropout, key)
    )


def inner(block: Block, parameters, layout: dispatch.Layout, rows: jax.Array, tokens: int):
    """What `down` reads, of each row's expert."""
    apply = functools.partial(_apply_map, block, parameters, layout, tokens)
    activate = ACTIVATIONS[block.activation]
    y = apply("up", rows)
    # Gated: act(gate(x)) * up(x); plain: act(up(x)).
    return activate(apply("gate", rows)) * y if block.gated else activate(y)


def _apply_map(block, parameters, layout, tokens, name, rows):
    own, shared = (part.get(name, {}) for part in parameters)
    shape = dict(block.shapes).get(name)
    if shape is None:
        y = grouped_matmul.matmul(layout, rows[:, None], own["kernel"].astype(rows.dtype))[:, 0]
    else:
        # MPOE: auxiliary cores of each expert around one central core of all.
        cores = {**own["cores"], **shared.get("cores", {})}
        cores = tuple(cores[str(k)] for k in range(shape.num_cores))
        y = _apply_chains(block.settings, shape, cores, layout, tokens, rows, name)
    if "kernel" in shared:
        y = y + rows @ shared["kernel"].astype(rows.dtype)
    if "bias" in own:
        return grouped_matmul.add_bias(layout, y, own["bias"].astype(y.dtype))
    return y + shared["bias"].astype(y.dtype)[None] if "bias" in shared else y


def _apply_chains(settings, shape, cores, layout, tokens, rows, name):
    plan = mpo.plan_experts(
        shape,
        layout.number,
        tokens,
        share_central=settings.shares_core(name),
        remat=settings.remat,
        structure=None if settings.structure == "auto" else settings.structure,
        one_by_one=grouped_matmul.runs_one_by_one(layout),
        dtype=rows.dtype.name,
    )
    return grouped_matmul.chain_matmul(layout, shape, cores, rows, plan, settings.remat)
