"""A post-norm encoder; any matrix dense or MPO; layers stacked or shared, and scanned."""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from mpojax import mpo, nn
from mpojax.models import description, matrices, stacking
from mpojax.models.config import EncoderConfig
from mpojax.models.encoder_layers import norm
from mpojax.nn.dropout import dropout, split_or_none


class Embeddings(nnx.Module):
    """Word + position + token type rows, normalised; narrower tables are mapped to the width."""

    def __init__(
        self, config: EncoderConfig, shapes: Mapping[str, mpo.MPOShape], *, rngs: nnx.Rngs
    ):
        """`shapes` by name: word, position, token_type, projection."""
        self.config = config
        sizes = matrices.under(matrices.matrix_sizes(config), "embeddings/")

        def table(name):
            if name not in sizes:
                return None
            return nn.embedding(*sizes[name], shapes.get(name), dtype=config.dtype, rngs=rngs)

        self.word = table("word")
        self.position = table("position")
        self.token_type = table("token_type")
        self.norm = norm(config, sizes["position"][1])
        self.projection = (
            nn.linear(*sizes["projection"], shapes.get("projection"), dtype=config.dtype, rngs=rngs)
            if "projection" in sizes
            else None
        )

    def __call__(
        self,
        input_ids: jax.Array,
        token_type_ids: jax.Array | None,
        key: jax.Array | None,
        segments: jax.Array | None = None,
    ) -> jax.Array:
        """Maps ids (batch, length) to (batch, length, hidden)."""
        config = self.config
        x = self.word(input_ids)
        if config.trigram_input:
            x = _with_neighbours(x)
        if config.projection == "word":
            x = self.projection(x)
        if self.token_type is not None:
            types = jnp.zeros_like(input_ids) if token_type_ids is None else token_type_ids
            x = x + self.token_type(types)
        if segments is None:
            rows = self.position(jnp.arange(input_ids.shape[1], dtype=jnp.int32))[None]
        else:
            rows = self.position(_positions(segments))
        x = dropout(self.norm(x + rows), config.dropout, key)
        return x if config.projection == "word" or self.projection is None else self.projection(x)


def _positions(segments: jax.Array) -> jax.Array:
    """Positions (batch, length) within each run of equal segment numbers."""
    places = jnp.broadcast_to(jnp.arange(segments.shape[1], dtype=jnp.int32), segments.shape)
    begins = jnp.concatenate(
        [jnp.ones_like(segments[:, :1], bool), segments[:, 1:] != segments[:, :-1]], axis=1
    )
    return places - jax.lax.cummax(jnp.where(begins, places, 0), axis=1)


def _with_neighbours(x: jax.Array) -> jax.Array:
    """Rows (batch, length, width) next to the following and the previous one, zeros at the ends."""
    following = jnp.pad(x[:, 1:], ((0, 0), (0, 1), (0, 0)))
    previous = jnp.pad(x[:, :-1], ((0, 0), (1, 0), (0, 0)))
    return jnp.concatenate([following, x, previous], axis=-1)


class Transformer(nnx.Module):
    """Base class of all models: settings, and the shapes of the matrices in MPO form.

    Attributes:
      batch_inputs: what the model reads of a batch of arrays, in the order of its arguments; a
        batch may lack all but the ids, and hold more.
    """

    batch_inputs = ("input_ids", "attention_mask", "token_type_ids")

    def __init__(self, config: EncoderConfig, shapes: Mapping[str, mpo.MPOShape] | None):
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

    def __repr__(self) -> str:
        """A page; `nnx.display(model)` shows every array."""
        return description.describe(self)

    __str__ = __repr__


class Encoder(Transformer):
    """Token ids -> hidden states; see `EncoderConfig`.

    Attributes:
      config: the settings.
      embeddings: tables and their norm.
      stacks: list of stacked layers, leading axis = layer (= block for what a block shares);
        contiguous layers whose matrices have equal shapes are one stack (usually there is one), run
        by one `jax.lax.scan`; see `mpojax.models.stacking`.
      stack_ranges: the layers of each stack.
      pooler: the map of the first token, or None.
    """

    def __init__(
        self,
        config: EncoderConfig,
        shapes: Mapping[str, mpo.MPOShape] | None = None,
        *,
        rngs: nnx.Rngs,
    ):
        """Random parameters; `shapes` gives the MPO form of any matrix, by matrix path.

        Raises:
          ValueError: a shape for a path that does not exist, or of the wrong size.
        """
        outside = ("head", "masked_lm/transform")
        super().__init__(config, {p: s for p, s in (shapes or {}).items() if p not in outside})
        shapes = self.shapes
        self.embeddings = Embeddings(config, matrices.under(shapes, "embeddings/"), rngs=rngs)
        key = rngs.params()
        self.stack_ranges = tuple(stacking.stack_ranges(config, shapes))
        self.stacks = nnx.List(
            [stacking.random_stack(config, shapes, key, r) for r in self.stack_ranges]
        )
        self.pooler = _pooler(config, shapes, rngs) if config.pooling == "pooler" else None
        outside = {
            path: settings
            for path, settings in matrices.adapter_settings(config).items()
            if path in ("embeddings/projection", "pooler")
        }
        nn.attach_adapters(self, outside, config.adapter_scale, rngs=rngs)

    def __call__(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        token_type_ids: jax.Array | None = None,
        dropout_key: jax.Array | None = None,
        segments: jax.Array | None = None,
    ) -> jax.Array:
        """Last hidden states (batch, length, hidden) in the compute dtype.

        Args:
          input_ids: (batch, length) integers; an id outside the vocabulary gives NaN.
          attention_mask: (batch, length), nonzero or True at real tokens; None for all real.
            Rows of padding alone come back finite.
          token_type_ids: (batch, length) integers; None for all zero. A model without token types
            (DistilBERT) does not read them, so that one batch serves every model.
          dropout_key: turns dropout on; every layer gets a key of its own.
          segments: (batch, length) integers, for texts packed one after the other into a row:
            attention stays inside equal numbers, and positions start anew with each.

        Raises:
          ValueError: shapes that do not fit, or a sequence longer than the position table.
        """
        others = {
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            "segments": segments,
        }
        _check_inputs(self.config, input_ids, others)
        return _forward(self, input_ids, attention_mask, token_type_ids, dropout_key, segments)

    def states(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        token_type_ids: jax.Array | None = None,
        dropout_key: jax.Array | None = None,
        *,
        attention: bool = False,
    ) -> tuple[jax.Array, jax.Array | None]:
        """Hidden states after every layer; arguments as in a call.

        Args:
          attention: whether the attention probabilities are computed, too (once more, from the
            inputs of the layers, without dropout).

        Returns:
          (layers, batch, length, hidden), of which the last is what a call gives; and (layers,
          batch, heads, length, length) or None.

        Raises:
          ValueError: inputs that do not fit; probabilities of layers with a bottleneck.
        """
        if attention and self.config.bottleneck_size is not None:
            raise ValueError("attention=True: layers with a bottleneck do not give probabilities.")
        others = {"attention_mask": attention_mask, "token_type_ids": token_type_ids}
        _check_inputs(self.config, input_ids, others)
        record = _outputs_and_attention if attention else _outputs
        inputs = (input_ids, attention_mask, token_type_ids, dropout_key, None)
        return _forward(self, *inputs, record=record)[1]

    def layer(self, index: int) -> nnx.Module:
        """One layer as a module: (hidden states, mask, dropout key) -> hidden states.

        Raises:
          ValueError: there is no such layer.
        """
        for stack, layer_range in zip(self.stacks, self.stack_ranges, strict=True):
            if index in layer_range:
                return stacking.one_layer(self.config, stack, layer_range, index)
        raise ValueError(f"layer {index}: the layers are 0..{self.config.num_layers - 1}.")


def _outputs(layer, x, y, mask):
    return y, None


def _outputs_and_attention(layer, x, y, mask):
    return y, layer.attention.probabilities(x, mask)


# So that a call outside of any jit compiles once, not at every call.
@functools.partial(jax.jit, static_argnames="record")
def _forward(
    encoder: Encoder, input_ids, attention_mask, token_type_ids, dropout_key, segments, record=None
):
    mask = None if attention_mask is None else attention_mask.astype(bool)
    if segments is not None:
        same = segments[:, :, None] == segments[:, None, :]
        mask = same if mask is None else jnp.logical_and(same, mask[:, None, :])
    embed_key, layers_key = split_or_none(dropout_key, 2)
    x = encoder.embeddings(input_ids, token_type_ids, embed_key, segments)
    recorded = []
    for stack, layer_range in zip(encoder.stacks, encoder.stack_ranges, strict=True):
        x, found = stacking.run_stack(
            encoder.config, stack, layer_range, x, mask, layers_key, record
        )
        recorded.append(found)
    if record is None:
        return x
    return x, jax.tree.map(lambda *parts: jnp.concatenate(parts), *recorded)


def _pooler(config, shapes, rngs) -> nnx.Module:
    hidden = config.hidden_size
    return nn.linear(hidden, hidden, shapes.get("pooler"), dtype=config.dtype, rngs=rngs)


def _check_inputs(config, input_ids, others):
    if input_ids.ndim != 2:
        raise ValueError(f"input_ids has shape {input_ids.shape}; it must be (batch, length).")
    if input_ids.shape[1] > config.max_positions:
        raise ValueError(
            f"input_ids has length {input_ids.shape[1]}, more than max_positions="
            f"{config.max_positions}; cut the text or split it."
        )
    for name, value in others.items():
        if value is not None and value.shape != input_ids.shape:
            raise ValueError(
                f"{name} has shape {value.shape}; it must equal that of input_ids, "
                f"{input_ids.shape}."
            )
