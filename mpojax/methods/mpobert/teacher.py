"""Parameters taken over from a trained encoder: chains, copied or fitted, and all the rest."""

from collections.abc import Iterator, Mapping

import numpy as np
from absl import logging

from mpojax import checks, models, mpo
from mpojax.methods.mpobert import fit as mpobert_fit

# What a teacher must have in common with the model.
_TEACHER_FIELDS = (
    *("vocab_size", "hidden_size", "embedding_size", "num_heads", "intermediate_size"),
    *("max_positions", "token_types", "activation", "norm", "norm_eps", "projection"),
    *("trigram_input", "bottleneck_size", "bottleneck_attention", "num_feed_forwards"),
)

Chains = Iterator[tuple[str, tuple[np.ndarray, ...]]]  # (matrix path, cores)


class Teacher:
    """A trained encoder whose layers a model begins as: layer l as the teacher's l * depth / L.

    Args:
      teacher: with dense matrices.
      config: of the model.

    Raises:
      ValueError: a teacher that a model of these settings cannot continue.
    """

    def __init__(self, teacher: models.Model, config: models.EncoderConfig):
        _check(teacher, config)
        self.config, self._student = teacher.config, config
        self.arrays = models.to_arrays(models.unshared(teacher))

    def layer(self, layer: int) -> int:
        """The teacher's layer that a layer begins as."""
        # floor(i T / S): neighbouring layers of a deeper student begin alike.
        return layer * self.config.num_layers // self._student.num_layers

    def kernel(self, layer: int, role: str) -> np.ndarray:
        """One of the teacher's matrices."""
        return np.asarray(self.arrays[f"layers/{layer}/{role}/kernel"])

    @property
    def copies_one_layer(self) -> bool:
        """True if all layers of each block begin as one and the same layer of the teacher."""
        if not self.config.shares_everything:
            return False
        sources: dict[int, set[int]] = {}
        for layer in range(self._student.num_layers):
            block = layer // self._student.block_size
            sources.setdefault(block, set()).add(self.layer(layer) // self.config.block_size)
        return all(len(found) == 1 for found in sources.values())

    def take_over(self, arrays: dict) -> None:
        """Puts the teacher's arrays in place, for everything that is no chain.

        That is tables, map, pooler, heads, biases and norms of layers.
        """
        names = ("num_labels", "head", "masked_lm")
        same_head = all(getattr(self.config, n) == getattr(self._student, n) for n in names)
        for name in arrays:
            source = name
            if name.startswith("layers/"):
                _, layer, rest = name.split("/", 2)
                source = f"layers/{self.layer(int(layer))}/{rest}"
            is_own = "/adapter/" in name or (name.startswith("head/") and not same_head)
            if source in self.arrays and not is_own:
                found, wanted = self.arrays[source].shape, arrays[name].shape
                if found != wanted:
                    raise ValueError(
                        f"the teacher does not fit the model: {source} is {found}, must be "
                        f"{wanted}."
                    )
                arrays[name] = self.arrays[source]

    def chains(self, shapes: Mapping[str, mpo.MPOShape], central: str | int, gauge: str) -> Chains:
        """(path, cores) of every matrix.

        Args:
          shapes: {matrix path: chain}.
          central: "mean", or the layer whose central cores are used; see `start.from_teacher`.
          gauge: of the decomposition.

        Raises:
          ValueError: a `central` that is no layer of the teacher.
        """
        layers = checks.integer(0, self.config.num_layers - 1)
        allowed = checks.one_of("mean") | layers.noted("a layer of the teacher")
        checks.check_value("central", central, allowed)
        if self.copies_one_layer:
            return self._copied(shapes, gauge)
        return self._fitted(shapes, central, gauge)

    def _copied(self, shapes, gauge: str) -> Chains:
        """Each of the teacher's matrices is decomposed once."""
        known = {}
        for path, shape in shapes.items():
            source = self.layer(layer_of(path))
            # Layers that copy one matrix take one decomposition.
            key = role_of(path), source - source % self.config.block_size, shape
            if key not in known:
                w = np.asarray(self.kernel(key[1], key[0]), np.float64)
                known[key] = mpo.decompose(w, shape, gauge)
            yield path, known[key]

    def _fitted(self, shapes, central: str | int, gauge: str) -> Chains:
        """Central cores of a mean or of one layer, auxiliary cores by least squares."""
        errors: dict[str, list[float]] = {}
        config = self._student
        for first in range(0, config.num_layers, config.block_size):
            block = range(first, first + config.block_size)
            for role, shape in roles(shapes).items():
                own = {layer: self.kernel(self.layer(layer), role) for layer in block}
                if central == "mean":
                    # Of the mean matrix: nearest on average to all layers that share it.
                    middle = np.mean(np.stack(list(own.values())), axis=0, dtype=np.float64)
                else:
                    middle = np.asarray(self.kernel(central, role), np.float64)
                start = mpo.decompose(middle, shape, gauge)
                if shares_auxiliary(config):
                    yield f"layers/{first}/{role}", start
                    continue
                for layer, w in own.items():
                    w = np.asarray(w, np.float64)
                    cores, error = mpobert_fit.fit_auxiliary(w, start, shape)
                    errors.setdefault(role, []).append(error)
                    yield f"layers/{layer}/{role}", cores
        for role, values in errors.items():
            logging.info(
                "%s: relative error of the fitted layers %.3f on average, %.3f at most",
                *(role, np.mean(values), np.max(values)),
            )


def _check(teacher: models.Model, config: models.EncoderConfig) -> None:
    if teacher.shapes or teacher.config.adapters:
        what = f"{len(teacher.shapes)} matrices in MPO form" if teacher.shapes else "adapters"
        raise ValueError(f"the teacher has {what}; merge it before: compression.merge(teacher).")
    if teacher.config.shares_parts:
        raise ValueError("the teacher's layers share a part of their parameters; merge it before.")
    both_pool = teacher.config.pooling == config.pooling == "pooler"
    problems = [
        f"{name}: {getattr(teacher.config, name)!r} in the teacher, {getattr(config, name)!r} here"
        for name in (*_TEACHER_FIELDS, *(["pooler_activation"] if both_pool else []))
        if getattr(teacher.config, name) != getattr(config, name)
    ]
    if problems:
        raise ValueError("the teacher does not fit the model:\n  " + "\n  ".join(problems))


def shares_auxiliary(config: models.EncoderConfig) -> bool:
    """True if several layers have the same auxiliary cores."""
    return config.block_size > 1 and "auxiliary" in config.shared_roles


def roles(shapes: Mapping[str, mpo.MPOShape]) -> dict[str, mpo.MPOShape]:
    """{role: shape}; a role is the path of a matrix in its layer."""
    return {role_of(path): shape for path, shape in shapes.items()}


def role_of(path: str) -> str:
    """`attention/query` of `layers/3/attention/query`."""
    return path.split("/", 2)[2]


def layer_of(path: str) -> int:
    """3 of `layers/3/attention/query`."""
    return int(path.split("/", 2)[1])
