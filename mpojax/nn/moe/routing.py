"""Routers: the experts that a token goes to, with their weights, and statistics over all tokens.

| router       | experts | gate                                                                  |
| switch       | 1       | p / stop_gradient(p): value 1, straight-through gradient              |
| switch_scale | 1       | p, the probability ("Switch Transformers", Fedus et al., JMLR 2022)   |
| top2         | 2       | the two probabilities, scaled to sum 1; nothing is dropped at random  |
| topk         | k       | the k probabilities; topk_normalized: scaled to sum 1                 |
| unweighted   | k       | 1; logits are of x / norm(x) (MoEfication, Zhang et al., ACL 2022)    |
| oracle       | k       | 1; by the sizes of what is inside the experts, not by logits          |
| noisy_topk   | k       | softmax over the k largest logits with learned noise (Shazeer et al., |
|              |         | ICLR 2017)                                                            |
"""

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from mpojax.nn.moe.settings import ExpertSettings


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=[
        *("tokens", "load", "probability", "entropy", "dropped", "balance", "z_loss"),
    ],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class RouterStatistics:
    """Statistics of a router over the real tokens of a batch; float32.

    Attributes:
      tokens: () how many there are; padding is never counted.
      load: (experts,) fraction of all assignments that each expert gets, before any is dropped; no
        gradient.
      probability: (experts,) mean router probability.
      entropy: () mean entropy of a token's router probabilities, in nats.
      dropped: () fraction of assignments dropped for lack of capacity.
      balance: () experts * sum(load * probability): 1 when uniform, `experts` when all tokens go to
        one expert with probability 1.
      z_loss: () mean square of the logarithm of the router's partition sum.
    """

    tokens: jax.Array
    load: jax.Array
    probability: jax.Array
    entropy: jax.Array
    dropped: jax.Array
    balance: jax.Array
    z_loss: jax.Array

    def with_kept(self, kept: jax.Array, k: int) -> "RouterStatistics":
        """These, with `dropped` by the number of assignments kept out of `k` for each token."""
        assigned = jnp.maximum(self.tokens * k, 1.0)
        dropped = (self.tokens * k - kept.astype(self.tokens.dtype)) / assigned
        return dataclasses.replace(self, dropped=jax.lax.stop_gradient(dropped))


class Routing(NamedTuple):
    """Assignments of T tokens to k experts each.

    Attributes:
      experts: (T, k) int32; the number of experts where a token is padding.
      gates: (T, k) float32 weights of the experts' outputs; 0 where a token is padding.
      statistics: of all T tokens; nothing dropped.
    """

    experts: jax.Array
    gates: jax.Array
    statistics: RouterStatistics


class Router(nnx.Module):
    """A linear map to one logit per expert, and a rule that chooses by them; float32 always."""

    def __init__(self, hidden_size: int, settings: ExpertSettings, *, rngs: nnx.Rngs):
        """Draws kernel and bias uniformly from ±1/sqrt(hidden_size), as the MPOE authors do.

        The noise kernel of "noisy_topk" starts at zero.
        """
        self.settings = settings
        width = settings.router_size
        if width is not None:
            normal = jax.random.normal(rngs.params(), (hidden_size, width), jnp.float32)
            self.inner = nnx.Param(normal / math.sqrt(hidden_size))
            hidden_size = width
        bound, size = 1.0 / math.sqrt(hidden_size), (hidden_size, settings.number)
        draw = functools.partial(jax.random.uniform, minval=-bound, maxval=bound)
        self.kernel = nnx.Param(draw(rngs.params(), size, jnp.float32))
        bias = draw(rngs.params(), size[1:], jnp.float32)
        self.bias = nnx.Param(bias) if settings.router_bias else None
        is_noisy = settings.router == "noisy_topk"
        self.noise = nnx.Param(jnp.zeros(size, jnp.float32)) if is_noisy else None

    def __call__(
        self, x: jax.Array, mask: jax.Array | None = None, key: jax.Array | None = None
    ) -> Routing:
        """Routes (T, hidden) tokens.

        Args:
          x: hidden states, any floating dtype.
          mask: (T,) booleans, False for padding: not routed, not counted.
          key: draws the noise of "noisy_topk"; without it there is none.
        """
        x = x.astype(jnp.float32)
        if mask is not None:  # what padding holds must not reach a gradient
            x = jnp.where(mask[:, None], x, 0.0)
        if self.settings.router == "unweighted":
            x = x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
        if self.settings.router_size is not None:
            x = jnp.tanh(_linear(x, self.inner[...]))
        logits = _linear(x, self.kernel[...])
        if self.bias is not None:
            logits = logits + self.bias[...][None]
        chosen_by = logits
        if self.noise is not None and key is not None:
            # H(x) = x W + N(0, 1) softplus(x W_noise) (Shazeer et al., 2017, equation 4)
            stddev = jax.nn.softplus(_linear(x, self.noise[...]))
            chosen_by = logits + stddev * jax.random.normal(key, logits.shape)
        return route(logits, self.settings, mask, chosen_by)


def route(
    logits: jax.Array,
    settings: ExpertSettings,
    mask: jax.Array | None = None,
    chosen_by: jax.Array | None = None,
) -> Routing:
    """Assigns tokens by the router of `settings`.

    Args:
      logits: (T, experts) float32; the statistics are of these.
      settings: names the router.
      mask: (T,) booleans, False for padding.
      chosen_by: (T, experts), logits with noise; default `logits`.
    """
    number, k = settings.number, settings.experts_per_token
    mask = jnp.ones(logits.shape[0], bool) if mask is None else mask
    chosen_by = logits if chosen_by is None else chosen_by
    # Padding may hold anything, NaN included: nothing of it may reach a sum.
    logits, chosen_by = (jnp.where(mask[:, None], x, 0.0) for x in (logits, chosen_by))
    one_hot = _largest(chosen_by, k).astype(logits.dtype)  # (T, k, experts)
    experts = jnp.argmax(one_hot, -1).astype(jnp.int32)
    # (T, 1); p = softmax(logits) = exp(logits - log_sum)
    log_sum = jax.nn.logsumexp(logits, -1, keepdims=True)
    probability = jnp.exp(logits - log_sum)
    if settings.router == "noisy_topk":
        # softmax over the k chosen logits, noise included: (T, k)
        gates = jax.nn.softmax(jnp.sum(one_hot * chosen_by[:, None], -1), -1)
    else:
        gates = jnp.sum(one_hot * probability[:, None], -1)
        if settings.router in ("unweighted", "oracle"):
            gates = jnp.ones_like(gates)
        elif settings.router == "switch":
            # 1, with the gradient of log p (straight-through)
            gates = gates / jax.lax.stop_gradient(gates)
        elif settings.router in ("top2", "topk_normalized"):
            # g_j = p_j / sum_i p_i over the chosen
            gates = gates / jnp.sum(gates, -1, keepdims=True)
    statistics = _statistics(logits - log_sum, log_sum[:, 0], one_hot, mask)
    return Routing(
        jnp.where(mask[:, None], experts, number),
        jnp.where(mask[:, None], gates, 0.0),
        statistics,
    )


def _linear(x, kernel):
    # Full float32: nearly equal logits decide where a token goes.
    return jnp.matmul(x, kernel, precision="highest")


def _largest(scores, k):
    """(T, k, experts) booleans: one-hot rows of the k largest scores, the largest first.

    The first of equal scores is taken. Repeated argmax: partitions over devices, unlike top_k.
    """
    scores = jax.lax.stop_gradient(scores)
    chosen = []
    for _ in range(k):
        chosen.append(jax.nn.one_hot(jnp.argmax(scores, -1), scores.shape[-1], dtype=bool))
        scores = jnp.where(chosen[-1], -jnp.inf, scores)
    return jnp.stack(chosen, 1)


def _statistics(log_probability, log_sum, one_hot, mask):
    number, k = one_hot.shape[2], one_hot.shape[1]
    tokens = jnp.sum(mask, dtype=log_sum.dtype)
    weights = mask.astype(log_sum.dtype) / jnp.maximum(tokens, 1.0)
    # f[e] = (1 / T k) |{(t, j): token t chooses e}|, without padding
    load = jax.lax.stop_gradient(jnp.sum(one_hot * weights[:, None, None], (0, 1)) / k)
    p = jnp.exp(log_probability)
    # P_e, the mean probability over real tokens; f_e above has no gradient, P_e carries it.
    probability = jnp.sum(p * weights[:, None], 0)
    # A probability that underflows to 0 has a finite logarithm here: 0 * finite is 0.
    entropy = -jnp.sum(p * log_probability * weights[:, None])
    return RouterStatistics(
        tokens=tokens,
        load=load,
        probability=probability,
        entropy=entropy,
        dropped=jnp.zeros_like(tokens),
        # E sum_e f_e P_e: 1 where both are uniform
        balance=number * jnp.sum(load * probability),
        # mean of (log sum_e exp logit_e)^2
        z_loss=jnp.sum(jnp.square(log_sum) * weights),
    )
