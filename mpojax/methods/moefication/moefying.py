"""`moefy`: the feed-forward blocks of a trained model become mixtures of their own neurons."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mpojax import checks, models, nn
from mpojax.compression import calibration_batches
from mpojax.methods.moefication import clustering, inputs, routers

_NEURONS = 32  # of an expert, where nothing is said
_FIELDS = {
    "experts": checks.integer(1) | checks.null(),
    "share": checks.number(above=0, high=1),
    "clusters": checks.one_of(*clustering.CLUSTERS),
    "router": checks.one_of(*routers.ROUTERS),
    "epochs": checks.integer(1),
}


def moefy(
    model: models.Model,
    *,
    experts: int | None = None,
    share: float = 0.2,
    clusters: str = "weights",
    router: str = "mlp",
    calibration: Sequence[Any] | np.ndarray | None = None,
    epochs: int = 30,
    seed: int = 0,
    progress: Callable[[int, int, str], None] | None = None,
) -> models.Model:
    """The model with its feed-forward blocks split into experts, without other parameters.

    Neurons j of a block are the terms of act(x W_up) W_down = sum_j act(x w_j) v_j. They are
    divided into groups of equal size, of which a token uses a share:

        y = sum over the chosen groups e of sum_(j in e) act(x w_j) v_j

    With all groups on the model computes the same as before, up to the order of sums. After ReLU
    most terms are 0 and groups without any change nothing; of GELU and gated blocks, whose terms
    are small but not 0, the groups of largest |activation| count.

    Args:
      model: a dense decoder (GPT-2, LLaMA, ...) or encoder-decoder (T5).
      experts: groups of a block; divides the width of the blocks. None: groups of 32 neurons.
      share: of the groups that a token uses, see `moefication.with_share`.
      clusters: what groups are made by, see `moefication.clustering`.
      router: "mlp" (a small trained network), "centre" (the nearest mean direction), or "truth"
        (the most active groups, all of which are computed: an upper bound, nothing is saved).
      calibration: batches of texts as for `mpojax.calibrate`, or token ids (N, length): for the
        router "mlp" and clusters by "coactivation".
      epochs: of the training of the routers.
      seed: of clusters and training.
      progress: called as progress(done, total, path).

    Returns:
      A mixture of experts, saved and loaded as any. Biases of the last map are divided among the
      experts of a token.

    Raises:
      ValueError: a model that is no dense language model, a number of experts that does not divide
        the width, or texts that are missing.

    Examples:
      >>> import jax.numpy as jnp
      >>> import mpojax as mj
      >>> from flax import nnx
      >>> from mpojax import models
      >>> sizes = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "intermediate_size": 32}
      >>> model = models.build(models.DecoderConfig(vocab_size=99, **sizes), rngs=nnx.Rngs(0))
      >>> split = mj.moefy(model, experts=4, share=1.0, router="centre")
      >>> ids = jnp.arange(8)[None]
      >>> bool(jnp.allclose(split(ids), model(ids), atol=1e-5))
      True

    Zhang et al., "MoEfication: Transformer Feed-forward Layers are Mixtures of Experts" (Findings
    of ACL 2022, arXiv:2110.01786).
    """
    values = {"experts": experts, "share": share, "clusters": clusters, "router": router}
    checks.check(values | {"epochs": epochs}, _FIELDS)
    experts, width = num_experts(model, experts), model.config.intermediate_size
    reads = router == "mlp" or clusters == "coactivation"
    if reads and calibration is None:
        raise ValueError(
            f"router={router!r} with clusters={clusters!r} learns from texts: give calibration=, "
            "or take router='centre' and clusters='weights'."
        )
    settings = nn.ExpertSettings(
        number=experts,
        router="oracle" if router == "truth" else "unweighted",
        k=_number(share, experts),
        intermediate_size=width // experts,
        router_bias=router != "mlp",
        router_size=experts if router == "mlp" else None,
    )
    paths = model.config.feed_forwards()
    read = dict.fromkeys(paths).items()
    if reads:
        read = inputs.of_blocks(model, calibration_batches(calibration))
    arrays = dict(models.to_arrays(model))
    choices = (clusters, router, epochs, seed)
    for done, (path, rows) in enumerate(read, 1):
        _split(arrays, path, settings, model.config.activation, rows, choices)
        if progress is not None:
            progress(done, len(paths), path)
    pattern = "|".join(paths)
    config = dataclasses.replace(model.config, experts=((pattern, settings),))
    return models.from_arrays(config, {}, arrays)


def with_share(model: models.Model, share: float, *, truth: bool = False) -> models.Model:
    """A moefied model whose tokens use another share of the experts.

    Args:
      model: what `moefy` gave, also compressed.
      share: above 0, at most 1; one expert at least.
      truth: the most active experts are used instead of those that the router says.

    Raises:
      ValueError: blocks that were not moefied.
    """
    checks.check_value("share", share, _FIELDS["share"])
    known = {path: model.config.experts_of(path) for path in model.config.feed_forwards()}
    if bad := [
        p for p, s in known.items() if s is None or s.router not in ("unweighted", "oracle")
    ]:
        raise ValueError(f"{bad[0]} was not split by moefy: its experts are no shares of a block.")
    routers_of = {path: "oracle" if truth else s.router for path, s in known.items()}
    changed = {
        path: dataclasses.replace(s, k=_number(share, s.number), router=routers_of[path])
        for path, s in known.items()
    }
    arrays = dict(models.to_arrays(model))
    for path, settings in changed.items():
        if (bias := f"{path}/down/bias") in arrays:
            # Each of a token's k experts adds 1 / k of the bias.
            arrays[bias] = arrays[bias] * np.float32(known[path].k / settings.k)
    return models.from_arrays(model.config.with_experts(changed), model.shapes, arrays)


def flops_per_token(model: models.Model) -> tuple[int, int]:
    """(of the feed-forward blocks with their routers, of all matrices): 2 for a multiply-add.

    Experts count as often as a token has some; scores of attention and looked-up rows do not count.
    A matrix in MPO form counts as the dense one. The router "oracle" counts as one that needs no
    work: it says what could be reached.
    """
    config, blocks, others = model.config, 0, 0
    for path, size in config.matrix_sizes().items():
        block = path.rpartition("/")[0]
        experts = config.experts_of(block)
        if experts is not None or block.endswith("feed_forward"):
            blocks += math.prod(size) * (experts.experts_per_token if experts else 1)
        elif not path.startswith("embeddings/"):
            others += math.prod(size)
    tied = config.generates and config.tied
    others += math.prod(config.matrix_sizes()["embeddings/word"]) if tied else 0
    for path in config.feed_forwards():
        experts = config.experts_of(path)
        if experts is not None and experts.router != "oracle":
            inner = experts.router_size
            width = config.hidden_size if inner is None else inner
            # (hidden, experts), or (hidden, inner) and (inner, experts)
            blocks += width * experts.number + (config.hidden_size * inner if inner else 0)
    return 2 * blocks, 2 * (blocks + others)


def _number(share: float, experts: int) -> int:
    return max(round(share * experts), 1)


def num_experts(model: models.Model, experts: int | None = None) -> int:
    """Groups that `moefy` makes of every block; None: those of 32 neurons.

    Raises:
      ValueError: a model that is no dense language model, or a number that does not divide the
        width.
    """
    _check_model(model)
    width = model.config.intermediate_size
    experts = experts or max(width // _NEURONS, 1)
    if width % experts:
        raise ValueError(
            f"experts={experts} does not divide the {width} neurons of a block; take one of "
            f"{checks.listed([str(n) for n in range(2, width) if width % n == 0], limit=12)}."
        )
    return experts


def _check_model(model: models.Model) -> None:
    if not models.writes_text(model):
        raise ValueError(
            f"a {type(model).__name__} has no blocks to split: experts belong to decoders and "
            "encoder-decoders (GPT-2, LLaMA, T5)."
        )
    config = model.config
    if model.shapes or config.adapters or config.experts:
        raise ValueError(
            "the model has matrices in MPO form, adapters or experts; neurons are those of dense "
            "blocks: mpojax.merge(model) first."
        )


def _split(
    arrays: dict, path: str, settings: nn.ExpertSettings, activation: str, rows, choices: tuple
) -> None:
    """The arrays of one block, in place."""
    clusters, router, epochs, seed = choices
    number = settings.number
    maps = [name for name in ("gate", "up") if f"{path}/{name}/kernel" in arrays]
    points = clustering.directions([arrays[f"{path}/{name}/kernel"] for name in maps])
    active = None if rows is None else inputs.activity(arrays, path, activation, rows)
    by = points if clusters == "weights" else clustering.coactivation(active, number)
    labels = clustering.balanced(by, number, seed)
    if router == "mlp":
        # (tokens, neurons) @ (neurons, groups): the activity of each group
        of_groups = active @ np.float32(labels[:, None] == np.arange(number)[None])
        found = routers.mlp(points, labels, rows, of_groups, epochs, seed)
    else:
        found = routers.centre(points, labels, arrays[f"{path}/up/kernel"].shape[0])
    order = np.argsort(labels, kind="stable").reshape(number, -1)
    _regroup(arrays, path, maps, order)
    if (bias := f"{path}/down/bias") in arrays:
        # A token's experts add it together.
        arrays[bias] = np.stack([arrays[bias] / np.float32(settings.k)] * number)
    arrays |= {f"{path}/router/{name}": np.float32(value) for name, value in found.items()}


def _regroup(arrays: dict, path: str, maps: Sequence[str], order) -> None:
    """Neurons in groups (experts, neurons of each), in place."""
    for name in maps:
        kernel, bias = f"{path}/{name}/kernel", f"{path}/{name}/bias"
        # (hidden, neurons) -> (experts, hidden, neurons of each)
        arrays[kernel] = np.asarray(arrays[kernel]).T[order].swapaxes(1, 2)
        if bias in arrays:
            arrays[bias] = np.asarray(arrays[bias])[order]
    # (neurons, hidden) -> (experts, neurons of each, hidden)
    arrays[f"{path}/down/kernel"] = np.asarray(arrays[f"{path}/down/kernel"])[order]
