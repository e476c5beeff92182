"""Routers of a moefied block: the parameters of an `nn.Router` of kind "unweighted".

    centre   logit_e = <x, c_e> / ||x|| - ||c_e||^2 / 2    the nearest mean direction of a group
    mlp      logits = tanh(x / ||x|| U) V                  trained to predict the groups' activity
    truth    the groups of largest activity, for which all are computed: what routers can reach

The small network starts as the authors' does, U the centres and V the identity; its targets are the
sums of activations of each group over the largest one, by cross-entropy, for 30 epochs of Adam at
0.01 (their released code; it keeps the best epoch on a tenth of the tokens, here the last counts).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

ROUTERS = ("mlp", "centre", "truth")
_RATE, _BATCH = 0.01, 512


def centre(points, labels, hidden_size: int) -> dict[str, np.ndarray]:
    """Parameters by name of the router "centre".

    Args:
      points: (neurons, features), directions that neurons read; of a gated block the first
        `hidden_size` features are those of the gate, which decides whether a neuron fires.
      labels: (neurons,) groups.
      hidden_size: of the tokens.
    """
    centres = _centres(points[:, :hidden_size], labels)
    return {"kernel": centres.T, "bias": -0.5 * np.sum(centres**2, axis=1)}


def mlp(points, labels, inputs, activity, epochs: int, seed: int) -> dict[str, np.ndarray]:
    """Parameters by name of the router "mlp".

    Args:
      points, labels: as for `centre`.
      inputs: (tokens, hidden), what the block reads.
      activity: (tokens, groups), sums of the sizes of activations.
      epochs: over the tokens.
      seed: of their order.
    """
    inputs = np.asarray(inputs, np.float32)
    x = inputs / np.maximum(np.linalg.norm(inputs, axis=1, keepdims=True), 1e-12)
    targets = np.float32(activity) / max(float(np.max(activity)), 1e-12)
    start = _centres(points[:, : x.shape[1]], labels).T
    parameters = {"inner": jnp.float32(start), "kernel": jnp.eye(start.shape[1])}
    state = optax.adam(_RATE).init(parameters)
    rng, batch = np.random.default_rng(seed), min(_BATCH, len(x))
    for _ in range(epochs):
        order = rng.permutation(len(x))[: len(x) // batch * batch].reshape(-1, batch)
        parameters, state = _epoch(parameters, state, jnp.asarray(x[order]), targets[order])
    return {name: np.asarray(value) for name, value in parameters.items()}


@functools.partial(jax.jit, donate_argnums=(0, 1))
def _epoch(parameters, state, xs, targets):
    def loss(parameters, x, y):
        logits = jnp.tanh(x @ parameters["inner"]) @ parameters["kernel"]
        return jnp.mean(optax.sigmoid_binary_cross_entropy(logits, y))

    def step(carry, batch):
        parameters, state = carry
        gradient = jax.grad(loss)(parameters, *batch)
        with jax.numpy_dtype_promotion("standard"):  # optax counts in integers
            updates, state = optax.adam(_RATE).update(gradient, state)
        return (optax.apply_updates(parameters, updates), state), None

    return jax.lax.scan(step, (parameters, state), (xs, targets))[0]


def _centres(points, labels) -> np.ndarray:
    """(groups, features): the mean unit direction of each."""
    rows = points / np.maximum(np.linalg.norm(points, axis=1, keepdims=True), 1e-12)
    return np.stack([rows[labels == group].mean(axis=0) for group in range(labels.max() + 1)])
