"""Dot-product attention (Vaswani et al., 2017), with grouped heads, score biases and dropout."""

import jax
import jax.numpy as jnp

from mpojax.nn.dropout import dropout
from mpojax.nn.elementwise import softmax


def attend(
    q_BxSxNxD: jax.Array,
    k_BxTxKxD: jax.Array,
    v_BxTxKxD: jax.Array,
    mask: jax.Array | None = None,
    *,
    scale: float,
    bias: jax.Array | None = None,
    dropout_rate: float = 0.0,
    dropout_key: jax.Array | None = None,
) -> jax.Array:
    """Values (batch, S, heads N, size D) mixed for each of S places from T of them.

    `jax.nn.dot_product_attention` has no dropout, keeps two arrays of the scores' size for the
    backward pass, and in 16 bits its derivative mixes dtypes, which strict promotion refuses.

    Args:
      q_BxSxNxD: queries.
      k_BxTxKxD, v_BxTxKxD: keys and values; each of their K heads serves N / K of the queries.
      mask, scale, bias: see `probabilities`.
      dropout_rate: of the probabilities, with a key.
      dropout_key: None for no dropout.
    """
    p_BxNxSxT = probabilities(q_BxSxNxD, k_BxTxKxD, mask, scale=scale, bias=bias)
    p_BxNxSxT = dropout(p_BxNxSxT, dropout_rate, dropout_key).astype(v_BxTxKxD.dtype)
    batch, length, heads, size = q_BxSxNxD.shape
    v_BxKxTxD = v_BxTxKxD.transpose(0, 2, 1, 3)
    # The queries of one head of keys as more rows: a plain product of matrices.
    p_BxKxRxT = p_BxNxSxT.reshape(batch, v_BxKxTxD.shape[1], -1, v_BxKxTxD.shape[2])
    mixed_BxNxSxD = jnp.matmul(p_BxKxRxT, v_BxKxTxD).reshape(batch, heads, length, size)
    return mixed_BxNxSxD.transpose(0, 2, 1, 3)


def probabilities(
    q_BxSxNxD: jax.Array,
    k_BxTxKxD: jax.Array,
    mask: jax.Array | None = None,
    *,
    scale: float,
    bias: jax.Array | None = None,
) -> jax.Array:
    """Attention weights (batch, heads, S, T), in float32.

    Args:
      q_BxSxNxD, k_BxTxKxD: queries and keys, see `attend`.
      mask: booleans that broadcast to the result, True where a place may be attended to. A row
        without any True attends evenly to all places: finite, and meant to be thrown away.
      scale: multiplies the scores.
      bias: added to them, broadcasts to the result.
    """
    batch, length, heads, size = q_BxSxNxD.shape
    k_BxKxDxT = k_BxTxKxD.transpose(0, 2, 3, 1)
    q_BxKxRxD = q_BxSxNxD.transpose(0, 2, 1, 3).reshape(batch, k_BxKxDxT.shape[1], -1, size)
    scores_BxKxRxT = scale * jnp.matmul(q_BxKxRxD, k_BxKxDxT, preferred_element_type=jnp.float32)
    scores_BxNxSxT = scores_BxKxRxT.reshape(batch, heads, length, -1)
    if bias is not None:
        scores_BxNxSxT = scores_BxNxSxT + bias.astype(jnp.float32)
    if mask is not None:
        scores_BxNxSxT = jnp.where(mask, scores_BxNxSxT, 0.7 * jnp.finfo(jnp.float32).min)
    return softmax(scores_BxNxSxT)
