"""KV cache of generation: keys and values of all layers, kept between calls.

Each lies as the product of a decoding step reads it, keys (D, T), values (T, D): in the layout of
the activations (T, K, D) a step would first transpose the whole cache.
"""

import dataclasses

import jax
import jax.numpy as jnp

from mpojax.nn import KeysValues


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """Keys and values of all layers.

    Attributes:
      keys: (layers, batch, kv heads, head size, length); those from `position` on are still empty.
      values: (layers, batch, kv heads, length, head size), likewise.
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
        return self.keys.shape[4]

    def update(self, layer: jax.Array | int, keys_values: KeysValues) -> tuple["Cache", KeysValues]:
        """(cache with the new keys and values (B, S, K, D) of a layer, all of that layer)."""
        k_BxSxKxD, v_BxSxKxD = keys_values
        keys = _written(self.keys, k_BxSxKxD.transpose(0, 2, 3, 1), (layer, 0, 0, 0, self.position))
        values = _written(
            self.values, v_BxSxKxD.transpose(0, 2, 1, 3), (layer, 0, 0, self.position, 0)
        )
        cache = dataclasses.replace(self, keys=keys, values=values)
        # All positions, for one shape at every step: the causal mask hides those still empty.
        return cache, (keys[layer].transpose(0, 3, 1, 2), values[layer].transpose(0, 2, 1, 3))

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


def _written(whole: jax.Array, new: jax.Array, start: tuple) -> jax.Array:
    return jax.lax.dynamic_update_slice(whole, new[None].astype(whole.dtype), start)
