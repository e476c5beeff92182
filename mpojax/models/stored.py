"""A model whose arrays are somewhere else, such as in files, and are read part by part.

Large models are calibrated and compressed so: what is in memory is one layer, not the model.
"""

import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mpojax import mpo
from mpojax.models import arrays as arrays_lib
from mpojax.models.config import Config
from mpojax.models.model import Model
from mpojax.models.stack import TransformerStack


class StoredModel:
    """Settings of a model, and its arrays by logical path; see `mpojax.io.open_pretrained`.

    Attributes:
      config: settings.
      shapes: MPO shapes by matrix path.
      arrays: by logical path; what `numpy.asarray` reads counts as an array.
    """

    def __init__(self, config: Config, shapes: Mapping[str, mpo.MPOShape] | None, arrays: Mapping):
        """`arrays` are those that `from_arrays` takes; they are not copied."""
        self.config, self.shapes, self.arrays = config, dict(shapes or {}), dict(arrays)

    @functools.cached_property
    def abstract(self) -> Model:
        """The model with shapes in the place of arrays, which are checked by name and shape."""
        return arrays_lib.check_arrays(self.config, self.shapes, self.arrays)

    @classmethod
    def of(cls, model: "Model | StoredModel") -> "StoredModel":
        """A model taken apart; on a CPU its arrays are shared, not copied."""
        if isinstance(model, StoredModel):
            return model
        return cls(model.config, model.shapes, arrays_lib.to_arrays(model))

    def checked(self) -> "StoredModel":
        """This model, whose arrays fit its settings; raises ValueError where they do not."""
        _ = self.abstract
        return self

    def load(self, *, keep_16_bits: bool = True, release: bool = False) -> Model:
        """The whole model in memory; arguments as of `from_arrays`."""
        options = {"release": release, "keep_16_bits": keep_16_bits}
        return arrays_lib.filled(self.abstract, self.arrays, **options)

    @property
    def inner(self) -> Model:
        """Abstract: the encoder of a model with a head; else the model itself."""
        return self.abstract.body

    @property
    def num_layers(self) -> int:
        """Depth of the stack."""
        return _stack(self.inner).num_layers

    def outside(self) -> Model:
        """What surrounds the layers, in a model that has none: `begin`, the last norm, a head."""
        model = nnx.clone(self.inner)
        _stack(model).stacks = nnx.List([])
        return self._filled(model, _name)

    def layer(self, index: int) -> nnx.Module:
        """One layer as a module of its own, with arrays of the type that they are stored in."""
        layer = jax.eval_shape(lambda stack: stack.layer(index), _stack(self.inner))
        return self._filled(layer, lambda path: f"layers/{index}/{_name(path)}")

    def _filled(self, abstract: nnx.Module, name_of: Callable[[tuple], str]) -> nnx.Module:
        graphdef, state = nnx.split(abstract)
        filled = [
            (path, variable.replace(jnp.asarray(np.asarray(self.arrays[name_of(path)]))))
            for path, variable in nnx.to_flat_state(state)
        ]
        return nnx.merge(graphdef, nnx.from_flat_state(filled))


def _name(path: tuple) -> str:
    return arrays_lib.logical_names(path, None)[0][0]


def _stack(model: Model) -> TransformerStack:
    """The only stack of a decoder or an encoder."""
    return getattr(model, "tower", model)
