"""What the rows of the MPOE paper have in common: weights, experts, gradient mask."""

import functools

import ml_collections

from mpojax.methods import mpoe

WEIGHTS = {
    "t5-base": "google-t5/t5-base",
    "t5-large": "google-t5/t5-large",
    "gpt2": "openai-community/gpt2",
}


def put(config: ml_collections.ConfigDict, architecture: str, variant: str) -> None:
    """Puts a variant of a published model into a config.

    Chains start in the authors' gauge, in which they are trained. The probability of the mask is
    ours, see `mpoe.mask_rate`; masked are whole steps, moments and decay included.

    Raises:
      ValueError: an unknown variant.
    """
    config.architecture, config.model = architecture, WEIGHTS[architecture]
    fields = mpoe.fields(variant)
    if fields is not None:
        config.experts.update(fields)
        if fields["form"] != "switch":
            config.experts.gauge = "symmetric"
    config.optimizer.central_mask.update(
        {"rate": mpoe.mask_rate(variant), "mode": "skip", "granularity": "step"}
    )


@functools.cache
def counts(architecture: str, variant: str) -> dict[str, int]:
    """`mpoe.counts`."""
    return mpoe.counts(architecture, variant)
