"""Small random checkpoints of language models, made by transformers."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from mpojax import io
from tests.parity import reference

VOCABULARY = 60
TOLERANCE = 1e-5
SIZES_OF_LLAMA = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
}

run = jax.jit(lambda model, *inputs: model(*inputs))


def model(kind: str, seed: int = 0, scale: float = 0.2, **settings):
    """A random model of the class `kind` of transformers; the norms are near 1."""
    config = getattr(reference.transformers, kind).config_class
    settings = {"vocab_size": VOCABULARY, **settings}
    # Ids that the models know by default are no tokens of so small a vocabulary.
    settings = {"bos_token_id": 1, "eos_token_id": 2, **settings}
    made = reference.quietly(lambda: getattr(reference.transformers, kind)(config(**settings)))
    reference.randomize(made, seed, scale)
    with reference.torch.no_grad():
        for name, parameter in made.named_parameters():
            if parameter.ndim == 1 and name.endswith("weight"):
                # Gemma adds the 1 itself.
                parameter.mul_(0.5).add_(0.0 if "Gemma" in kind else 1.0)
    return made


def saved(theirs, folder: pathlib.Path) -> pathlib.Path:
    """The folder, with the model in it."""
    reference.quietly(theirs.save_pretrained, folder)
    return folder


def token_ids(shape: tuple[int, int], seed: int = 0) -> np.ndarray:
    """Random ids, 0 left out."""
    return np.random.default_rng(seed).integers(1, VOCABULARY, shape)


def logits(theirs, **inputs) -> np.ndarray:
    """Of a torch model for numpy inputs."""
    tensors = {name: reference.torch.tensor(np.asarray(a)).long() for name, a in inputs.items()}
    with reference.torch.no_grad():
        return reference.quietly(theirs, **tensors, use_cache=False).logits.float().numpy()


def ours(loaded, *inputs) -> np.ndarray:
    """Of one of our models."""
    given = [None if array is None else jnp.asarray(array) for array in inputs]
    return np.asarray(run(loaded, *given))


def in_two_parts(loaded, ids, mask) -> np.ndarray:
    """Logits of one of our decoders that reads with a KV cache: a prompt, then the last token."""
    ids, mask = jnp.asarray(ids), jnp.asarray(mask)
    prompt = loaded.forward(ids[:, :-1], mask, cache=loaded.start_cache(*ids.shape))
    last = loaded.forward(ids[:, -1:], mask, cache=prompt.cache)
    return np.concatenate([prompt.logits, last.logits], axis=1)


def both_ways(theirs, folder: pathlib.Path):
    """(our model, theirs again): imported, exported and loaded by the Auto class for the kind."""
    loaded = io.load_pretrained(saved(theirs, folder / "theirs"))
    io.export_huggingface(loaded, folder / "ours")
    is_pair = theirs.config.is_encoder_decoder
    auto = "AutoModelForSeq2SeqLM" if is_pair else "AutoModelForCausalLM"
    again = reference.load(folder / "ours", getattr(reference.transformers, auto))
    return loaded, again


def assert_same_logits(one: np.ndarray, other: np.ndarray, where=slice(None)):
    """Equal up to rounding, and not only because all of them are small."""
    assert np.abs(one[where]).max() > 0.5
    np.testing.assert_allclose(one[where], other[where], rtol=0, atol=TOLERANCE)
