"""What all models share: settings and shapes, embeddings, checks of inputs."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from mpojax import mpo, nn
from mpojax.models import description, matrices
from mpojax.models.block import norm
from mpojax.models.config import Config
from mpojax.nn import dropout


class Model(nnx.Module):
    """Base class of all models: settings, and the shapes of the matrices in MPO form.

    Attributes:
      batch_inputs: what the model reads of a batch of arrays, in the order of its arguments; a
        batch may lack all but the ids, and hold more.
      prompts_continue: new tokens follow the last position of a prompt: it is padded on the left.
    """

    batch_inputs = ("input_ids", "attention_mask", "token_type_ids")
    prompts_continue = False

    def __init__(self, config: Config, shapes: Mapping[str, mpo.MPOShape] | None):
        """Checks `shapes`; no parameters yet.

        Raises:
          ValueError: a shape for a path that does not exist, or of the wrong size.
        """
        self.config = config
        self.shape_items = tuple(sorted(matrices.checked_shapes(config, shapes).items()))

    @property
    def shapes(self) -> dict[str, mpo.MPOShape]:
        """MPO shapes by matrix path; matrices that are not named are dense."""
        return dict(self.shape_items)

    @property
    def body(self) -> "Model":
        """The part that holds embeddings and layers: the model itself, or what its head reads."""
        return self

    def __repr__(self) -> str:
        """A page; `nnx.display(model)` shows every array."""
        return description.describe(self)

    __str__ = __repr__


def predicts_next(model: nnx.Module) -> bool:
    """True for a decoder with logits, of the next token of a text; any module may be asked."""
    return getattr(model, "prompts_continue", False)


def writes_text(model: nnx.Module) -> bool:
    """True for a decoder or encoder-decoder with logits; any module may be asked."""
    return isinstance(model, Model) and model.config.generates


class Embeddings(nnx.Module):
    """Sum of word, position and token type rows, as far as there are any, and its norm.

    Narrower tables are mapped to the width: the sum (ALBERT), or the word rows (MobileBERT).
    """

    def __init__(self, config: Config, shapes: Mapping[str, mpo.MPOShape], *, rngs: nnx.Rngs):
        """`shapes` by path in the model: embeddings/word, position, token_type, projection."""
        self.config = config
        shapes, sizes = matrices.subtree(shapes, "embeddings/"), config.embedding_sizes()
        more = {"dtype": config.dtype, "rngs": rngs}

        def table(name):
            known = name in sizes
            return nn.embedding(*sizes[name], shapes.get(name), **more) if known else None

        self.word = table("word")
        self.position = table("position")
        self.token_type = table("token_type")
        width = config.hidden_size if config.projection == "word" else sizes["word"][1]
        self.norm = norm(config, width) if config.embedding_norm else None
        self.projection = (
            nn.linear(*sizes["projection"], shapes.get("projection"), **more)
            if "projection" in sizes
            else None
        )

    def __call__(
        self,
        input_ids: jax.Array,
        positions: jax.Array | None = None,
        token_types: jax.Array | None = None,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        """Maps ids (batch, length) to (batch, length, hidden).

        `positions` is (1 or batch, length), None for 0, 1, ...; `token_types` None for zeros.
        """
        config = self.config
        x = self.word(input_ids)
        # Gemma's sqrt(hidden_size), rounded to the compute dtype, as in transformers.
        if config.embedding_scale != 1.0:
            x = x * jnp.asarray(config.embedding_scale, x.dtype)
        if config.trigram_input:
            x = _with_neighbours(x)
        if config.projection == "word":
            x = self.projection(x)
        if self.token_type is not None:
            x = x + self.token_type(
                jnp.zeros_like(input_ids) if token_types is None else token_types
            )
        if self.position is not None:
            if positions is None:
                positions = jnp.arange(input_ids.shape[1], dtype=jnp.int32)[None]
            x = x + self.position(positions)
        if self.norm is not None:
            x = self.norm(x)
        x = dropout(x, config.embedding_dropout, dropout_key)
        return x if config.projection == "word" or self.projection is None else self.projection(x)


def _with_neighbours(x: jax.Array) -> jax.Array:
    """Rows (batch, length, width) next to the following and the previous one, zeros at the ends."""
    following = jnp.pad(x[:, 1:], ((0, 0), (0, 1), (0, 0)))
    previous = jnp.pad(x[:, :-1], ((0, 0), (1, 0), (0, 0)))
    # (batch, length, 3 width), in the order of transformers' MobileBERT.
    return jnp.concatenate([following, x, previous], axis=-1)


def segment_positions(segments: jax.Array) -> jax.Array:
    """Positions (batch, length) within each run of equal segment numbers."""
    positions = jnp.broadcast_to(jnp.arange(segments.shape[1], dtype=jnp.int32), segments.shape)
    begins = jnp.concatenate(
        [jnp.ones_like(segments[:, :1], bool), segments[:, 1:] != segments[:, :-1]], axis=1
    )
    # cummax: where the run that a position belongs to began.
    return positions - jax.lax.cummax(jnp.where(begins, positions, 0), axis=1)


def check_ids(name: str, ids: jax.Array) -> None:
    """Raises ValueError for ids that are not (batch, length) integers, or none at all."""
    if ids.ndim != 2 or not jnp.issubdtype(ids.dtype, jnp.integer):
        raise ValueError(
            f"{name} has shape {ids.shape} and type {ids.dtype}; it must be integers (batch, "
            "length)."
        )
    if 0 in ids.shape:
        raise ValueError(f"{name} has shape {ids.shape}: give at least one row and one token.")


def check_shape(name: str, array: jax.Array | None, shape: tuple[int, ...]) -> None:
    """Raises ValueError for an array, such as a mask, of another shape than that of its ids."""
    if array is not None and array.shape != tuple(shape):
        raise ValueError(f"{name} has shape {array.shape}; it must be that of its ids, {shape}.")


def check_length(config: Config, length: int) -> None:
    """Raises ValueError for a sequence that is longer than `config.max_positions`."""
    if length > config.max_positions:
        raise ValueError(
            f"a sequence of {length} tokens is longer than max_positions={config.max_positions}; "
            "cut the text, split it, or generate fewer tokens."
        )
