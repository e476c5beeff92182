"""Attention without an array of scores: the kernels that ship with jax.

| path     | what runs                                                        | where     |
| splash   | `jax.experimental.pallas.ops.tpu.splash_attention`               | TPU       |
| cudnn    | `jax.nn.dot_product_attention(implementation="cudnn")`           | A100, ... |
| products | `attention.attend`: two products, the scores between them        | elsewhere |

Memory of the kernels is linear in the length, that of the products quadratic.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from mpojax import devices
from mpojax.nn.functional import BATCH, TENSOR
from mpojax.nn.masks import EVERYWHERE, Mask, Reach

PATHS = ("products", "splash", "cudnn")

# Shorter texts stay with the products: a block of scores of 512 x 512 with heads of 64 takes a v5e
# 0.7 us, about what starting a block costs; their arrays are small, too.
_SHORTEST = 512
_BLOCKS = (512, 256, 128)
# Widest heads of cuDNN's kernel. Parts that are not listed may lack it.
_CUDNN = {"a100": 128, "h100": 256, "h200": 256}


def path(
    q_BxSxNxD: jax.Array,
    k_BxTxKxD: jax.Array,
    mask: Mask | jax.Array | None,
    *,
    has_bias: bool,
    softcap: float | None,
    has_dropout: bool,
) -> str:
    """How attention is computed on what is compiled for (`mpojax.devices`): one of `PATHS`.

    Kernels take 16-bit queries and keys of 512 positions and more, without a bias and dropout, and
    masks that follow a rule; splash whole blocks of 128 positions, cuDNN no soft cap.
    """
    lengths, size = (q_BxSxNxD.shape[1], k_BxTxKxD.shape[1]), q_BxSxNxD.shape[-1]
    has_rule = mask is None or (isinstance(mask, Mask) and bool(mask.reaches))
    is_short = min(lengths) < _SHORTEST or q_BxSxNxD.dtype.itemsize != 2
    if has_bias or has_dropout or is_short or not has_rule:
        return "products"
    if devices.platform() == "tpu":
        return "products" if any(length % 128 for length in lengths) else "splash"
    widest = _CUDNN.get(devices.target(), 0)
    uneven = size % 8 or any(length % 2 for length in lengths)
    return "products" if softcap or uneven or size > widest else "cudnn"


def attend(
    path: str, q_BxSxNxD, k_BxTxKxD, v_BxTxKxD, mask: Mask | None, scale: float, softcap=None
) -> jax.Array:
    """`attention.attend` by "splash" or "cudnn"; splash is interpreted where there is no TPU."""
    kernel = functools.partial(_splash, softcap=softcap) if path == "splash" else _cudnn
    kernel = functools.partial(kernel, q_BxSxNxD, k_BxTxKxD, v_BxTxKxD, mask, scale=scale)
    if mask is None or len(mask.reaches) == 1:
        return kernel(reach=EVERYWHERE if mask is None else mask.reaches[0])
    # A reach is static in a kernel: layers that differ are branches. These close over the mask, so
    # that its array is no operand where they do not read it.
    return jax.lax.switch(mask.kind, [functools.partial(kernel, reach=r) for r in mask.reaches])


def _cudnn(q_BxSxNxD, k_BxTxKxD, v_BxTxKxD, mask, *, reach: Reach, scale: float):
    before, after = reach
    is_causal = after == 0
    # The kernel knows causal masks and their windows; what else there is goes in as a bias.
    is_whole = mask is None or (mask.key_segments is None and (is_causal or reach == EVERYWHERE))
    window = {} if before is None or not is_causal else {"local_window_size": (before, 0)}
    seen = None
    if not is_whole:  # it broadcasts a bias over rows and heads, not over positions
        lengths = q_BxSxNxD.shape[1], k_BxTxKxD.shape[1]
        seen = jnp.broadcast_to(mask.array, (*mask.array.shape[:2], *lengths))
    return jax.nn.dot_product_attention(
        *(q_BxSxNxD, k_BxTxKxD, v_BxTxKxD),
        mask=seen,
        scale=scale,
        is_causal=is_causal,
        implementation="cudnn",
        **window,
    )


def _splash(q_BxSxNxD, k_BxTxKxD, v_BxTxKxD, mask, *, reach: Reach, scale: float, softcap):
    # The kernel has no scale of its own: it goes into the queries.
    arrays = [x.swapaxes(1, 2) for x in (q_BxSxNxD * scale, k_BxTxKxD, v_BxTxKxD)]
    arrays[0] = arrays[0].astype(q_BxSxNxD.dtype)
    segments = None
    if mask is not None and mask.key_segments is not None:
        ones = jnp.ones(q_BxSxNxD.shape[:2], jnp.int32)
        queries = ones if mask.query_segments is None else mask.query_segments
        segments = (queries, mask.key_segments)
    run = functools.partial(_kernel, reach=reach, softcap=softcap)
    return _on_mesh(run, arrays, segments).swapaxes(1, 2)


def _kernel(q_BxNxSxD, k_BxKxTxD, v_BxKxTxD, segments, *, reach: Reach, softcap):
    from jax.experimental.pallas.ops.tpu import splash_attention as lib  # loads Mosaic

    heads, lengths = q_BxNxSxD.shape[1], (q_BxNxSxD.shape[2], k_BxKxTxD.shape[2])
    rows, columns = (next(b for b in _BLOCKS if length % b == 0) for length in lengths)
    # The backward pass in two kernels: fused into one it keeps dq for every block of keys.
    blocks = lib.BlockSizes(
        block_q=rows,
        block_kv=columns,
        block_q_dkv=rows,
        block_kv_dkv=columns,
        block_q_dq=rows,
        block_kv_dq=columns,
    )
    near = lib.FullMask(lengths) if reach == EVERYWHERE else lib.LocalMask(lengths, reach, 0)
    kernel = lib.make_splash_mha(
        lib.MultiHeadMask([near] * heads),
        block_sizes=blocks,
        attn_logits_soft_cap=softcap,
        head_shards=1,
        q_seq_shards=1,
        interpret=devices.platform() != "tpu",
    )
    segments = None if segments is None else lib.SegmentIds(*segments)
    return jax.vmap(kernel)(q_BxNxSxD, k_BxKxTxD, v_BxKxTxD, segments)


def _on_mesh(run, arrays, segments):
    """Each device runs the kernel on its rows and heads: the compiler cannot divide a kernel."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or any(kind != AxisType.Auto for kind in mesh.axis_types):
        return run(*arrays, segments)
    batch = tuple(axis for axis in BATCH if axis in mesh.shape)
    if arrays[0].shape[0] % math.prod(mesh.shape[axis] for axis in batch):
        batch = ()
    heads = TENSOR if arrays[1].shape[1] % mesh.shape.get(TENSOR, 1) == 0 else None
    spec = P(batch or None, heads if TENSOR in mesh.shape else None)
    of_rows = None if segments is None else P(batch or None)
    mapped = jax.shard_map(
        run, in_specs=(spec, spec, spec, of_rows), out_specs=spec, check_vma=False
    )
    return mapped(*arrays, segments)
