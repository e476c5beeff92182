"""Dot-product attention (Vaswani et al., 2017): to itself or to another sequence, grouped heads,
rotary positions, score biases, a KV cache, dropout."""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from mpojax import mpo
from mpojax.nn import flash, masks
from mpojax.nn.functional import BATCH, TENSOR, dropout, shard, softmax
from mpojax.nn.linear import linear
from mpojax.nn.masks import Mask
from mpojax.nn.norm import RMSNorm
from mpojax.nn.positions import Rotary, apply_rope

# Keys and values (batch, length, heads, head size).
KeysValues = tuple[jax.Array, jax.Array]


def attend(
    q_BxSxNxD: jax.Array,
    k_BxTxKxD: jax.Array,
    v_BxTxKxD: jax.Array,
    mask: Mask | jax.Array | None = None,
    *,
    scale: float,
    bias: jax.Array | None = None,
    softcap: float | None = None,
    dropout_rate: float = 0.0,
    dropout_key: jax.Array | None = None,
    path: str | None = None,
) -> jax.Array:
    """Values (batch, S, heads N, size D) mixed for each of S positions from T of them.

    By a kernel that never forms the scores where there is one (`flash.path`), else by products:
    XLA's own `jax.nn.dot_product_attention` has no dropout, keeps two arrays of the scores' size
    for the backward pass, and in 16 bits its derivative mixes dtypes, which strict promotion
    refuses.

    Args:
      q_BxSxNxD: queries.
      k_BxTxKxD, v_BxTxKxD: keys and values; each of their K heads serves N / K of the queries.
      mask, scale, bias, softcap: see `attention_weights`.
      dropout_rate: of the weights, with a key.
      dropout_key: None for no dropout.
      path: one of `flash.PATHS`; None: `flash.path` chooses. Kernels know neither bias nor dropout.
    """
    if path is None:
        path = flash.path(
            *(q_BxSxNxD, k_BxTxKxD, mask),
            has_bias=bias is not None,
            softcap=softcap,
            has_dropout=dropout_rate > 0.0 and dropout_key is not None,
        )
    if path != "products":
        return flash.attend(path, q_BxSxNxD, k_BxTxKxD, v_BxTxKxD, mask, scale, softcap)
    lengths = q_BxSxNxD.shape[1], k_BxTxKxD.shape[1]
    blocks = masks.blocks(mask, *lengths)
    # Not with a bias or dropout: both come for the whole array of scores.
    if len(blocks) > 1 and bias is None and dropout_key is None:
        mixed = [
            attend(
                *(q_BxSxNxD[:, rows], k_BxTxKxD[:, keys], v_BxTxKxD[:, keys]),
                masks.part(mask, rows, keys),
                scale=scale,
                softcap=softcap,
                path=path,
            )
            for rows, keys in blocks
        ]
        return jnp.concatenate(mixed, axis=1)
    p_BxNxSxT = attention_weights(
        q_BxSxNxD, k_BxTxKxD, mask, scale=scale, bias=bias, softcap=softcap
    )
    # Dropped in float32, mixed in the dtype of the values: a softmax over many keys needs the
    # bits, a weighted mean does not.
    p_BxNxSxT = dropout(p_BxNxSxT, dropout_rate, dropout_key).astype(v_BxTxKxD.dtype)
    batch, length, heads, size = q_BxSxNxD.shape
    v_BxKxTxD = v_BxTxKxD.transpose(0, 2, 1, 3)
    # The queries of one head of keys as more rows: a plain product of matrices.
    p_BxKxRxT = p_BxNxSxT.reshape(batch, v_BxKxTxD.shape[1], -1, v_BxKxTxD.shape[2])
    mixed_BxNxSxD = jnp.matmul(p_BxKxRxT, v_BxKxTxD).reshape(batch, heads, length, size)
    return mixed_BxNxSxD.transpose(0, 2, 1, 3)


def attention_weights(
    q_BxSxNxD: jax.Array,
    k_BxTxKxD: jax.Array,
    mask: Mask | jax.Array | None = None,
    *,
    scale: float,
    bias: jax.Array | None = None,
    softcap: float | None = None,
) -> jax.Array:
    """softmax(scale * q k^T + bias) of the keys in the mask: (batch, heads, S, T), in float32.

    Args:
      q_BxSxNxD, k_BxTxKxD: queries and keys, see `attend`.
      mask: booleans that broadcast to the result, True where a position may be attended to, or a
        `Mask`. A row without any True attends evenly to all positions: finite, and meant to be
        thrown away.
      scale: multiplies the scores.
      bias: added to them, broadcasts to the result.
      softcap: c of c * tanh(scores / c), taken before the bias; None for none.
    """
    batch, length, heads, size = q_BxSxNxD.shape
    k_BxKxDxT = k_BxTxKxD.transpose(0, 2, 3, 1)
    q_BxKxRxD = q_BxSxNxD.transpose(0, 2, 1, 3).reshape(batch, k_BxKxDxT.shape[1], -1, size)
    # N / K queries share a head of keys: as rows R = S N / K of one product, nothing is repeated.
    scores_BxKxRxT = scale * jnp.matmul(q_BxKxRxD, k_BxKxDxT, preferred_element_type=jnp.float32)
    scores_BxNxSxT = scores_BxKxRxT.reshape(batch, heads, length, -1)
    if softcap is not None:
        # c tanh(s / c): near the identity for |s| << c, never beyond c (Gemma 2).
        scores_BxNxSxT = softcap * jnp.tanh(scores_BxNxSxT / softcap)
    if bias is not None:
        scores_BxNxSxT = scores_BxNxSxT + bias.astype(jnp.float32)
    if (seen := masks.as_array(mask)) is not None:
        # Not -inf: in a row without any key, max - max would be nan. 0.7: finite less the maximum.
        scores_BxNxSxT = jnp.where(seen, scores_BxNxSxT, 0.7 * jnp.finfo(jnp.float32).min)
    return softmax(scores_BxNxSxT)


class Attention(nnx.Module):
    """Query, key, value and output maps, each dense or MPO.

    Keys and values are made by a call of their own, of the same or of another sequence, so that
    they can be cached between calls. Each head of keys serves num_heads / num_kv_heads heads of
    queries (Ainslie et al., "GQA", 2023).
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        head_size: int,
        shapes: Mapping[str, mpo.MPOShape] | None = None,
        *,
        num_kv_heads: int | None = None,
        value_size: int | None = None,
        use_bias: bool = True,
        out_bias: bool = True,
        scale: float | None = None,
        softcap: float | None = None,
        qk_norm: str | None = None,
        norm_eps: float = 1e-6,
        dropout_rate: float = 0.0,
        dtype: str = "float32",
        rngs: nnx.Rngs,
    ):
        """Random parameters.

        Args:
          hidden_size: width of what queries and keys read, and of the output.
          num_heads, head_size: heads of the queries, and the width of each.
          shapes: MPO form of any of query, key, value, out.
          num_kv_heads: heads of keys and values; None: as many as of queries.
          value_size: width of what values read; None: `hidden_size`.
          use_bias, out_bias: of the maps to queries, keys and values, and of the output map.
          scale: multiplies scores; None: head_size^-0.5.
          softcap: of the scores, see `attention_weights`.
          qk_norm: RMS norms of queries and keys before they are rotated, over "head" (each head) or
            "whole" (all heads together); None for none.
          norm_eps: epsilon of these.
          dropout_rate: of the attention weights.
          dtype: compute dtype.
          rngs: for the parameters.
        """
        shapes = shapes or {}
        self.head_size = head_size
        self.scale = 1.0 / math.sqrt(head_size) if scale is None else scale
        self.softcap = softcap
        self.dropout_rate = dropout_rate
        more = {"dtype": dtype, "rngs": rngs}
        wide, narrow = num_heads * head_size, (num_kv_heads or num_heads) * head_size
        self.query = linear(hidden_size, wide, shapes.get("query"), use_bias, **more)
        self.key = linear(hidden_size, narrow, shapes.get("key"), use_bias, **more)
        self.value = linear(
            value_size or hidden_size, narrow, shapes.get("value"), use_bias, **more
        )
        self.out = linear(wide, hidden_size, shapes.get("out"), out_bias, **more)
        if qk_norm is not None:
            sizes = {"head": (head_size, head_size), "whole": (wide, narrow)}[qk_norm]
            self.query_norm, self.key_norm = (RMSNorm(n, norm_eps, dtype=dtype) for n in sizes)

    def keys_values(
        self, x: jax.Array, rotary: Rotary | None = None, value_input: jax.Array | None = None
    ) -> KeysValues:
        """Keys and values of x (batch, length, hidden), in the compute dtype.

        Args:
          x: what is attended to.
          rotary: (cos, sin) of its positions, see `positions.rotary_embedding`.
          value_input: (batch, length, value_size), what values are made of; None for `x`.
        """
        value_input = x if value_input is None else value_input
        return self._rotated("key", x, rotary), self._heads(self.value(value_input))

    def __call__(
        self,
        x: jax.Array,
        mask: Mask | jax.Array | None = None,
        *,
        keys_values: KeysValues | None = None,
        bias: jax.Array | None = None,
        rotary: Rotary | None = None,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        """Maps (batch, length, hidden) to the same shape.

        Args:
          x: what attends.
          mask: booleans that broadcast to (batch, heads, length, keys), True where a key may be
            attended to, or a `Mask`; see `attention_weights`.
          keys_values: from the method of this name; None for those of `x`.
          bias: added to scores, broadcasts to the same shape as the mask.
          rotary: (cos, sin) of the positions of `x`.
          dropout_key: turns dropout on.
        """
        query = self._rotated("query", x, rotary)
        keys, values = self.keys_values(x, rotary) if keys_values is None else keys_values
        mixed = attend(
            query,
            keys,
            values,
            mask,
            scale=self.scale,
            bias=bias,
            softcap=self.softcap,
            dropout_rate=self.dropout_rate,
            dropout_key=dropout_key,
        )
        return self.out(mixed.reshape(*x.shape[:-1], -1))

    def disentangled_bias(
        self, x: jax.Array, rows_RxH: jax.Array, indices_SxS: jax.Array
    ) -> jax.Array:
        """scale * (q_i k(r_ij) + k_j q(r_ij)) of rows r of distances: (batch, heads, S, S).

        He et al., "DeBERTa" (ICLR 2021), section 3.1.
        """
        q_BxSxNxD, k_BxSxNxD = (self._heads(project(x)) for project in (self.query, self.key))
        q_1xRxNxD, k_1xRxNxD = (self._heads(f(rows_RxH[None])) for f in (self.query, self.key))
        # Products with all R rows of distances once, then S x S of them are looked up.
        # (B, N, S, R): of_query[b, n, i, r] = q_i . k(r), of_key[b, n, j, r] = k_j . q(r).
        of_query = jnp.einsum("bsnd,rnd->bnsr", q_BxSxNxD, k_1xRxNxD[0])
        of_key = jnp.einsum("bsnd,rnd->bnsr", k_BxSxNxD, q_1xRxNxD[0])
        query_ij = jnp.take_along_axis(of_query, indices_SxS[None, None], axis=-1)
        # k_j q(r_ij): `of_key` is by keys, so the indices are transposed, and the result below.
        key_ji = jnp.take_along_axis(of_key, indices_SxS.T[None, None], axis=-1)
        return self.scale * (query_ij + jnp.swapaxes(key_ji, -1, -2))

    def weights(
        self,
        x: jax.Array,
        mask: Mask | jax.Array | None = None,
        bias: jax.Array | None = None,
        rotary: Rotary | None = None,
    ) -> jax.Array:
        """Attention of `x` to itself (batch, heads, length, length), float32, without dropout."""
        query, key = (self._rotated(name, x, rotary) for name in ("query", "key"))
        return attention_weights(
            query, key, mask, scale=self.scale, bias=bias, softcap=self.softcap
        )

    def _rotated(self, name: str, x: jax.Array, rotary: Rotary | None) -> jax.Array:
        """Heads of the queries or keys of `x`, normalised and rotated."""
        y = getattr(self, name)(x)
        if (norm := getattr(self, f"{name}_norm", None)) is not None:
            # The width of the scale says over what: of one head, or of all heads.
            y = norm(y.reshape(*y.shape[:-1], -1, norm.scale.shape[-1]))
            y = y.reshape(*x.shape[:-1], -1)
        y_BxSxNxD = self._heads(y)
        return y_BxSxNxD if rotary is None else apply_rope(y_BxSxNxD, rotary)

    def _heads(self, y: jax.Array) -> jax.Array:
        return shard(y.reshape(*y.shape[:-1], -1, self.head_size), BATCH, None, TENSOR, None)
