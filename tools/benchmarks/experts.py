"""Mixtures of experts: chains around a shared central core (MPOE) against dense experts (Switch).

    python -m tools.benchmarks.experts                      # about twenty minutes on two cores
    python -m tools.benchmarks.experts --quick --what=step  # a few minutes, fewer rounds and tokens

Ratios of medians of interleaved rounds; the baseline of each table is measured in the same run.
`matrix`: one 768 x 3072 matrix of each expert, forward, capacity 1.25, over dense experts.
`step`: forward, backward and AdamW of layers of T5-base's width (attention, norms, experts), 8
experts, over Switch with the same dispatch; bytes of parameters and optimizer state over its.
`dispatch`: what dispatching tokens takes of a block; dropless over capacity. `growth`: a block with
8, 16, 64 experts, forward and backward, over one dense feed-forward block.
"""

import functools

import jax
import jax.numpy as jnp
from absl import app, flags
from flax import nnx

from mpojax import mpo, nn
from mpojax.nn.moe import dispatch, grouped_matmul
from tools.benchmarks import timing

_WHAT = flags.DEFINE_enum(
    "what", "all", ["all", "matrix", "step", "dispatch", "growth"], "What is measured."
)
_QUICK = flags.DEFINE_bool("quick", False, "Fewer rounds, and few tokens alone.")
_LAYERS = flags.DEFINE_integer("layers", 2, "Layers of the training step.")

_HIDDEN, _INNER, _LENGTH = 768, 3072, 512
_SIZES = {"up": (_HIDDEN, _INNER), "down": (_INNER, _HIDDEN)}
_USUAL = {name: mpo.MPOShape.published(*size) for name, size in _SIZES.items()}
_SEPARABLE = {name: mpo.separable_shape(*size) for name, size in _SIZES.items()}
# Form of the experts -> (shapes, settings).
_FORMS = {
    "Switch": ({}, {}),
    "MPOE, rebuilt": (_USUAL, {"structure": "rebuild"}),
    "MPOE, rebuilt and kept": (_USUAL, {"structure": "rebuild", "remat": False}),
    "MPOE, separable": (_SEPARABLE, {"structure": "shared_core"}),
}


def main(argv):
    del argv
    print(timing.machine(), flush=True)
    measures = {
        "matrix": _measure_matrix,
        "step": _measure_step,
        "dispatch": _measure_dispatch,
        "growth": _measure_growth,
    }
    for name, measure in measures.items():
        if _WHAT.value in ("all", name):
            measure()


def _timed(candidates, seconds_each=0.2):
    return timing.interleaved(candidates, 3 if _QUICK.value else 7, seconds_each)


def _experts(form, number=8, **settings):
    """A block of experts without biases."""
    shapes, more = _FORMS[form]
    settings = nn.ExpertSettings(number, **more, **settings)
    return nn.ExpertFeedForward(
        *(_HIDDEN, _INNER, "relu", shapes, settings), use_bias=False, rngs=nnx.Rngs(0)
    )


def _measure_matrix():
    print("\none matrix of each expert, forward, / dense experts (capacity 1.25)")
    print(f"{'experts':>8}{'tokens':>8}{'bond':>6}{'structure':>14}{'/ dense':>9}{'target':>8}")
    for number, tokens, bond, target in ((64, 512, 8, 0.45), (8, 4096, 32, 1.25)):
        shape = _USUAL["up"].with_bonds(bond)
        keys = jax.random.split(jax.random.key(0), 4)
        x = jax.random.normal(keys[0], (tokens, _HIDDEN))
        chosen = jax.random.randint(keys[1], (tokens, 1), 0, number)
        kernel = jax.random.normal(keys[2], (number, _HIDDEN, _INNER)) * _HIDDEN**-0.5
        cores = nn.random_expert_cores(keys[3], shape, 1 / _HIDDEN, number)
        capacity = dispatch.capacity_of(tokens, number, 1.25)
        one_by_one = jax.default_backend() == "cpu"
        plan = mpo.plan_experts(shape, number, tokens, training=False, one_by_one=one_by_one)

        def run(product, parameters, x, chosen, number=number, capacity=capacity):
            layout = dispatch.make_layout(chosen, number, "capacity", capacity=capacity)
            rows = product(layout, parameters, dispatch.gather(layout, x))
            return dispatch.combine(layout, rows, jnp.ones(chosen.shape))

        def chains(layout, cores, rows, shape=shape, plan=plan):
            return grouped_matmul.chain_matmul(layout, shape, cores, rows, plan)

        def dense(layout, kernel, rows):
            return grouped_matmul.matmul(layout, rows[:, None], kernel)[:, 0]

        candidates = {
            name: functools.partial(jax.jit(functools.partial(run, product)), parameters, x, chosen)
            for name, product, parameters in (("dense", dense, kernel), ("mpo", chains, cores))
        }
        times = _timed(candidates)
        print(
            f"{number:>8}{tokens:>8}{bond:>6}{plan.strategy:>14}"
            f"{times['mpo'] / times['dense']:>9.2f}{target:>8.2f}",
            flush=True,
        )


class _Layer(nnx.Module):
    """A pre-norm layer: attention and experts, as in T5."""

    def __init__(self, form, *, rngs):
        self.attention_norm = nn.RMSNorm(_HIDDEN, 1e-6)
        self.attention = nn.Attention(_HIDDEN, 12, _HIDDEN // 12, rngs=rngs)
        self.norm = nn.RMSNorm(_HIDDEN, 1e-6)
        self.experts = _experts(form)

    def __call__(self, x):
        x = x + self.attention(self.attention_norm(x))
        y, found = self.experts(self.norm(x))
        return x + y, found.balance


def layer_stack(form: str):
    """(parameters, loss of (parameters, x)) of a stack of layers: what `step` measures."""

    def make(key):
        return _Layer(form, rngs=nnx.Rngs(key))

    keys = jax.random.split(jax.random.key(0), _LAYERS.value)
    graph, parameters = nnx.split(jax.jit(nnx.vmap(make))(keys))

    def loss(parameters, x):
        def body(x, layer):
            return nnx.merge(graph, layer)(x)

        y, balance = jax.lax.scan(body, x, parameters)
        # 0.01: the weight of the balance loss in Switch Transformers (Fedus et al., 2021).
        return jnp.mean(jnp.square(y)) + 0.01 * jnp.sum(balance)

    return parameters, loss


def _bytes(parameters) -> int:
    """Of parameters and both moments."""
    return 3 * sum(leaf.nbytes for leaf in jax.tree.leaves(parameters))


def _measure_step(build=layer_stack):
    print(f"\ntraining step, {_LAYERS.value} layers of T5-base's width, 8 experts, / Switch")
    print(f"{'tokens':>8}  {'experts':<24}{'/ Switch':>9}{'target':>8}{'bytes / Switch':>16}")
    for tokens, target in ((4096, 1.5),) if _QUICK.value else ((4096, 1.5), (16_384, 1.25)):
        x = jax.random.normal(jax.random.key(1), (tokens // _LENGTH, _LENGTH, _HIDDEN))
        candidates, sizes = {}, {}
        for form in _FORMS:
            parameters, loss = build(form)
            sizes[form] = _bytes(parameters)
            candidates[form] = timing.training_steps(parameters, loss, x)
        times = _timed(candidates)
        for form in list(_FORMS)[1:]:
            print(
                f"{tokens:>8}  {form:<24}{times[form] / times['Switch']:>9.2f}{target:>8.2f}"
                f"{sizes[form] / sizes['Switch']:>16.3f}",
                flush=True,
            )
    of_block = [_bytes(nnx.state(_experts(form))) for form in ("MPOE, rebuilt", "Switch")]
    print(f"  bytes of the feed-forward block alone: {of_block[0] / of_block[1]:.3f}")


def _gradient(module, x):
    """The gradients of a block as a function without arguments."""
    graph, parameters = nnx.split(module)

    @jax.jit
    def run(parameters, x):
        def loss(parameters, x):
            y = nnx.merge(graph, parameters)(x)
            return jnp.sum(jnp.square(y[0] if isinstance(y, tuple) else y))

        return jax.grad(loss, (0, 1))(parameters, x)

    return functools.partial(run, parameters, x)


def _measure_dispatch():
    tokens = 1024 if _QUICK.value else 4096
    print(f"\nblocks of 8 experts, forward and backward, {tokens} tokens")
    print(f"  {'experts':<24}{'layout / block':>16}{'dropless / capacity 1.25':>26}")
    x = jax.random.normal(jax.random.key(0), (tokens, _HIDDEN))
    chosen = jax.random.randint(jax.random.key(1), (tokens, 1), 0, 8)

    @jax.jit
    def layout_alone(x, chosen):
        """Sort, gather and combine with their derivatives: all that is not a product."""

        def there_and_back(x):
            layout = dispatch.make_layout(chosen, 8, "block")
            rows = dispatch.gather(layout, x)
            return jnp.sum(jnp.square(dispatch.combine(layout, rows, jnp.ones(chosen.shape))))

        return jax.grad(there_and_back)(x)

    for form in ("Switch", "MPOE, separable"):
        candidates = {
            "layout": functools.partial(layout_alone, x, chosen),
            "block": _gradient(_experts(form), x),
            "capacity": _gradient(_experts(form, capacity_factor=1.25), x),
        }
        times = _timed(candidates)
        print(
            f"  {form:<24}{times['layout'] / times['block']:>16.3f}"
            f"{times['block'] / times['capacity']:>26.2f}",
            flush=True,
        )


def _measure_growth():
    tokens = 1024 if _QUICK.value else 4096
    forms = [form for form in _FORMS if form != "MPOE, rebuilt and kept"]
    print(f"\nblocks of n experts, forward and backward, {tokens} tokens, / one dense block")
    print(f"{'experts':>8}" + "".join(f"{form:>18}" for form in forms))
    x = jax.random.normal(jax.random.key(0), (tokens, _HIDDEN))
    dense = nn.FeedForward(_HIDDEN, _INNER, "relu", rngs=nnx.Rngs(0))
    for number in (8, 16) if _QUICK.value else (8, 16, 64):
        candidates = {"dense": _gradient(dense, x)}
        for form in forms:
            if number < 64 or form != "Switch":  # 64 dense experts and gradients take 2.4 GB
                candidates[form] = _gradient(_experts(form, number), x)
        times = _timed(candidates)
        cells = [f"{times[form] / times['dense']:.2f}" if form in times else "-" for form in forms]
        print(f"{number:>8}" + "".join(f"{cell:>18}" for cell in cells), flush=True)


if __name__ == "__main__":
    app.run(main)
