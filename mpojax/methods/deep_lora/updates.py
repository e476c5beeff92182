"""Deep updates of a model: where they start, and what is left of them at the end."""

import dataclasses
import functools
import hashlib
import re
from collections.abc import Callable, Iterable, Mapping

import jax
import numpy as np
from flax import nnx

from mpojax import checks, models, nn
from mpojax.training import objectives
from mpojax.training import state as state_lib

STARTS = ("gradient", "random")


@checks.settings("config.deep_lora.")
class DeepLoRASettings:
    """Settings of deep low-rank updates.

    Attributes:
      rank: of every update as it is trained; the paper's 2 r.
      depth: factors between input and output that learn at the full rate.
      basis_rate: None: the outer of the `depth` cores begin as the bases and learn as the others.
        A number: the bases are two more cores, whose rate is so much of that of the others (the
        paper's gamma, 0.01; 0 freezes them).
      init_scale: singular values of every factor at the start; the update starts at its power.
      start: "gradient": in the subspace of the first gradient; "random": in a random one.
      gradient_batches: of training data, over which the first gradient is summed.
      tolerance: the update of each matrix is cut at the end to the least rank with this relative
        error; 0 keeps the rank.
      matrices: regular expression over matrix paths.
    """

    rank: int = checks.field(checks.integer(1), 16)
    depth: int = checks.field(checks.integer(2, 62), 3)
    basis_rate: float | None = checks.field(checks.number(0) | checks.null(), None)
    init_scale: float = checks.field(checks.number(above=0), 1e-3)
    start: str = checks.field(checks.one_of(*STARTS), "gradient")
    gradient_batches: int = checks.field(checks.integer(1), 1)
    tolerance: float = checks.field(checks.number(0, below=1), 0.01)
    matrices: str = checks.field(checks.expression(), ".*/(query|value)")

    def __post_init__(self):
        if self.basis_rate is not None and self.start == "gradient" and self.rank % 2:
            raise ValueError(
                f"config.deep_lora.rank={self.rank} must be even: half of the bases are singular "
                "vectors of the gradient, half their images; or set config.deep_lora.basis_rate="
                "None."
            )

    @property
    def num_cores(self) -> int:
        """Cores of an update."""
        return self.depth + (0 if self.basis_rate is None else 2)

    def adapter(self, in_features: int, out_features: int) -> nn.AdapterSettings:
        """A chain of cores (in, rank), (rank, rank), ..., (rank, out) for a matrix of this size.

        >>> three = DeepLoRASettings(rank=4, basis_rate=None).adapter(16, 24)
        >>> three.num_params(16, 24) == 16 * 4 + 4 * 4 + 4 * 24
        True
        """
        ones = (1,) * (self.num_cores - 1)
        return nn.AdapterSettings(
            kind="mpo",
            num_cores=self.num_cores,
            bonds=(self.rank,) * (self.num_cores - 1),
            in_factors=(in_features, *ones),
            out_factors=(*ones, out_features),
            scale=1.0,
        )

    def cores(self, left: np.ndarray, right: np.ndarray) -> list[np.ndarray]:
        """The cores at the start, for bases left (in, rank) and right (rank, out).

        With e the `init_scale`, the update starts as e^depth left right.
        """
        small = self.init_scale * np.eye(self.rank)
        if self.basis_rate is None:
            factors = [left @ small, *[small] * (self.depth - 2), small @ right]
        else:
            factors = [left, *[small] * self.depth, right]
        first, *middle, last = map(np.float32, factors)
        # As cores of an MPO: (1, in, 1, r), (r, 1, 1, r), ..., (r, 1, out, 1).
        middle = [factor[:, None, None, :] for factor in middle]
        return [first[None, :, None, :], *middle, last[:, None, :, None]]


def chosen(model: models.Model, pattern: str) -> dict[str, tuple[int, int]]:
    """{path: (in_features, out_features)} of the dense matrices that a pattern names.

    Raises:
      ValueError: it names none, or one in MPO form.
    """
    sizes = model.config.matrix_sizes()
    found = {p: sizes[p] for p in model.config.adaptable() if re.fullmatch(pattern, p)}
    if not found:
        raise ValueError(
            f"config.deep_lora.matrices={pattern!r} matches no matrix; it must match a whole path "
            f"such as {model.config.adaptable()[0]}."
        )
    if inside := sorted(set(found) & set(model.shapes)):
        raise ValueError(
            f"{inside[0]} is in MPO form, and has no gradient as a matrix: merge the model first."
        )
    return found


def first_gradients(
    model: models.Model,
    paths: Iterable[str],
    loss: objectives.LossFunction,
    batches: Iterable[Mapping],
) -> dict[str, np.ndarray]:
    """dL/dW (in_features, out_features), float64, of dense matrices, summed over batches.

    Args:
      model: whose `paths` are dense.
      loss: what training minimises; taken without dropout.
      batches: of training data.
    """
    names = {path: models.dense_name(path) for path in paths}
    definition, trained, frozen = state_lib.split(
        model, lambda path, variable: path[-1] == "kernel" and isinstance(variable, nnx.Param)
    )

    @jax.jit
    def gradients(trained, frozen, batch):
        def value(trained):
            return loss(definition.merge(trained, frozen), batch, None)[0]

        found = models.logical_arrays(model, state_lib.flatten(jax.grad(value)(trained)))
        return {path: found[name] for path, name in names.items()}

    total: dict[str, np.ndarray] = {}
    for batch in batches:
        found = jax.device_get(gradients(trained, frozen, dict(batch)))
        total = {p: np.asarray(g, np.float64) + total.get(p, 0.0) for p, g in found.items()}
    return total


def bases(
    rank: int, gradient: np.ndarray | None, size: tuple[int, int], key: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Bases left (in, rank) and right (rank, out) in which an update starts as left right.

    A factorisation of full width starts, but for its scale, as a random Q with orthonormal rows or
    columns. With G = U S V^T its factors learn in the subspaces U + Q V of the inputs and
    V + Q^T U of the outputs alone (theorem 2.1 of the paper); the larger side gets an orthonormal
    basis of rank / 2 vectors of each kind, the other side its image under Q, which then has the
    singular vectors of that side, too: Q^T Q V = V.

    Args:
      gradient: G (in, out); None: random subspaces.
      key: of Q.

    Raises:
      ValueError: a rank above the sizes of the matrix.
    """
    checks.check_value("config.deep_lora.rank", rank, checks.integer(1, min(size)))
    rotation = orthogonal(*size, key)
    if gradient is None:
        gradient = key.standard_normal(size)
    u, _, vt = np.linalg.svd(gradient, full_matrices=False)
    half = -(-rank // 2)
    u, v = u[:, :half], vt[:half].T
    # With A an orthonormal basis, the update A (A^T Q) starts as the projection of Q.
    if size[0] >= size[1]:
        left = np.linalg.qr(_alternating(u, rotation @ v, rank))[0]
        return left, left.T @ rotation
    right = np.linalg.qr(_alternating(v, rotation.T @ u, rank))[0]
    return rotation @ right, right.T


def _alternating(one: np.ndarray, other: np.ndarray, count: int) -> np.ndarray:
    """The first columns of both in turn: (features, count)."""
    return np.stack([one, other], axis=2).reshape(one.shape[0], -1)[:, :count]


def orthogonal(rows: int, columns: int, key: np.random.Generator) -> np.ndarray:
    """A random matrix with orthonormal columns, or rows where there are fewer, float64."""
    square = key.standard_normal((max(rows, columns), min(rows, columns)))
    q, r = np.linalg.qr(square)
    # With a positive diagonal of R the factorisation is unique, and Q uniform (Haar).
    q = q * np.sign(np.diag(r))
    return q if rows >= columns else q.T


def started(
    model: models.Model,
    settings: DeepLoRASettings,
    gradients: Callable[[list[str]], Mapping[str, np.ndarray]],
    seed: int = 0,
) -> models.Model:
    """The model with deep updates of its matrices; it computes the same but for init_scale^depth.

    Args:
      model: dense in the matrices that `settings.matrices` names.
      gradients: paths -> first gradients; called where the start needs them.
      seed: of what is random.

    Raises:
      ValueError: see `chosen` and `bases`.

    Yaras, Wang, Balzano, Qu, "Compressible dynamics in deep overparameterized low-rank learning and
    adaptation" (2024, arXiv:2406.04112), section 4.
    """
    sizes = chosen(model, settings.matrices)
    for path, size in sizes.items():
        limit = checks.integer(1, min(size))
        checks.check_value(f"config.deep_lora.rank at {path}", settings.rank, limit)
    found = gradients(list(sizes)) if settings.start == "gradient" else {}
    adapters = {path: settings.adapter(*size) for path, size in sizes.items()}
    arrays = {}
    for path, size in sizes.items():
        number = int.from_bytes(hashlib.sha256(path.encode()).digest()[:4], "little")
        key = np.random.default_rng((seed, number))
        cores = settings.cores(*bases(settings.rank, found.get(path), size, key))
        arrays |= {f"{path}/adapter/cores/{k}": core for k, core in enumerate(cores)}
    return _with_adapters(model, adapters, models.to_arrays(model) | arrays)


def compressed(model: models.Model, tolerance: float = 0.01) -> tuple[models.Model, dict[str, int]]:
    """The model with its updates as low ranks of the rank that each has found, and these ranks.

    Of singular values s the least k with sqrt(sum_{i>k} s_i^2) <= tolerance sqrt(sum_i s_i^2) is
    kept: the subspace that the factors have learnt in. Nothing is left of what only started.

    Args:
      model: from `started`, trained.
      tolerance: relative error of an update; 0 keeps every rank.
    """
    deep = {
        path: settings
        for path, settings in models.adapter_settings(model.config).items()
        if settings.kind == "mpo"
    }
    arrays, adapters, ranks = dict(models.to_arrays(model)), {}, {}
    for path, settings in deep.items():
        names = [f"{path}/adapter/cores/{k}" for k in range(settings.num_cores)]
        down, up = _low_rank(
            [np.asarray(arrays.pop(name), np.float64) for name in names], tolerance
        )
        ranks[path] = down.shape[1]
        adapters[path] = nn.AdapterSettings(rank=ranks[path], scale=settings.scale)
        arrays |= {f"{path}/adapter/down": np.float32(down), f"{path}/adapter/up": np.float32(up)}
    return _with_adapters(model, adapters, arrays), ranks


def _low_rank(cores: list[np.ndarray], tolerance: float) -> tuple[np.ndarray, np.ndarray]:
    """Down (in, k) and up (k, out) of the matrix that a chain of `DeepLoRASettings.cores` is."""
    factors = (core.reshape(-1, core.shape[-1]) for core in cores[:-1])
    up = cores[-1].reshape(cores[-1].shape[0], -1)
    # A B = Q_l (R_l R_r^T) Q_r^T: the SVD of a rank x rank matrix gives that of the whole.
    q_left, r_left = np.linalg.qr(functools.reduce(np.matmul, factors))
    q_right, r_right = np.linalg.qr(up.T)
    u, s, vt = np.linalg.svd(r_left @ r_right.T)
    rest = np.sqrt(np.append(np.cumsum(s[::-1] ** 2)[::-1], 0.0))  # of the s from each on
    rank = max(1, int(np.argmax(rest <= tolerance * rest[0])))
    # sqrt(S) on both sides, so that neither factor starts much larger than the other.
    root = np.sqrt(s[:rank])
    return q_left @ (u[:, :rank] * root), (root[:, None] * vt[:rank]) @ q_right.T


def _with_adapters(
    model: models.Model, adapters: Mapping[str, nn.AdapterSettings], arrays: Mapping
) -> models.Model:
    """The model of these arrays, with these adapters in place of those of the same matrices."""
    in_place = tuple((p, s) for p, s in model.config.adapters if s.in_place)
    paths: dict[nn.AdapterSettings, list[str]] = {}
    for path, settings in (models.adapter_settings(model.config) | dict(adapters)).items():
        paths.setdefault(settings, []).append(path)
    added = tuple(("|".join(map(re.escape, own)), s) for s, own in paths.items())
    config = dataclasses.replace(model.config, adapters=(*in_place, *added))
    return models.from_arrays(config, model.shapes, arrays)
