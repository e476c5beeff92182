"""FLOPs of a model whose feed-forward blocks use a part of their neurons."""

import math

from mpojax import models


def flops_per_token(model: models.Model) -> tuple[int, int]:
    """(of the feed-forward blocks with their routers, of all matrices): 2 for a multiply-add.

    Experts count as often as a token has some; scores of attention and looked-up rows do not count.
    The router "oracle" counts as one that needs no work: it says what could be reached.
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
            blocks += width * experts.number + (config.hidden_size * inner if inner else 0)
    return 2 * blocks, 2 * (blocks + others)
