"""KV cache of generation: keys and values of all layers, kept between calls."""

import dataclasses

import jax
import jax.numpy as jnp

from mpojax.nn import KeysValues


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """Keys and values of all layers.

    Attributes:
      keys, values: (layers, batch, length, kv heads, head size); those from `position` on are
        still empty.
      position: int32 scalar, the next free one.
      encoder_keys_values: those of the encoder's output, (layers, batch, source length, heads, head
        size) each; None for a decoder without cross-attention.
    """

    keys: jax.Array
    values: jax.Array
    position: jax.Array
    encoder_keys_values: KeysValues | None = None

    @property
    def length(self) -> int:
        """Tokens that the cache can hold."""
        return self.keys.shape[2]

    def update(self, layer: jax.Array | int, keys_values: KeysValues) -> tuple["Cache", KeysValues]:
        """(cache with the new keys and values (B, S, K, D) of a layer, all of that layer)."""
        start = (layer, 0, self.position, 0, 0)
        keys, values = (
            jax.lax.dynamic_update_slice(whole, new[None].astype(whole.dtype), start)
            for whole, new in zip((self.keys, self.values), keys_values, strict=True)
        )
        cache = dataclasses.replace(self, keys=keys, values=values)
        # All positions, for one shape at every step: the causal mask hides those still empty.
        return cache, (keys[layer], values[layer])

    def of_encoder(self, layer: jax.Array | int) -> KeysValues:
        """Keys and values of the encoder's output for a layer."""
        return tuple(array[layer] for array in self.encoder_keys_values)

    def repeated(self, times: int) -> "Cache":
        """Every row so many times, one after the other."""
        return self._with_rows(lambda array: jnp.repeat(array, times, axis=1), encoder=True)

    def reordered(self, rows: jax.Array) -> "Cache":
        """The given rows of the sequence's own keys and values; those of the encoder stay."""
        return self._with_rows(lambda array: array[:, rows], encoder=False)

    def _with_rows(self, select, encoder: bool) -> "Cache":
        of_encoder = self.encoder_keys_values
        return dataclasses.replace(
            self,
            keys=select(self.keys),
            values=select(self.values),
            encoder_keys_values=jax.tree.map(select, of_encoder) if encoder else of_encoder,
        )

    def check_fits(self, num: int) -> None:
        """Raises ValueError where `num` more tokens do not fit, as far as that is known.

        Inside of a jax transformation `position` has no value: only `num` itself is compared, and
        more tokens than fit would overwrite the last ones.
        """
        known = not isinstance(self.position, jax.core.Tracer)
        used = int(self.position) if known else 0
        if used + num > self.length:
            raise ValueError(
                f"{num} tokens do not fit into a cache of {self.length} positions, of which {used} "
                "are used; start a longer one."
            )
