"""Text that `print(model)` shows: a page about the model instead of all its arrays."""

import math
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from flax import nnx

from mpojax import checks, mpo, nn

if TYPE_CHECKING:
    from mpojax.models.model import Model

_MAX_LINES = 40
# Settings that are shown, with their names for readers.
_SIZES = {
    "num_layers": "layers",
    "num_decoder_layers": "decoder layers",
    "hidden_size": "hidden",
    "num_heads": "heads",
    "intermediate_size": "feed-forward",
    "vocab_size": "vocabulary",
    "num_labels": "labels",
}


def describe(model: "Model") -> str:
    """Kind, sizes, parameters by role, adapters and experts, and the matrices in MPO form."""
    config = model.config
    lines = [f"{type(model).__name__}: {', '.join(_sizes(config))}, {config.dtype}"]
    lines.append("  " + _counts(model))
    for name in ("adapters", "experts"):
        for pattern, settings in getattr(config, name, ()):
            lines.append(f"  {name} on {pattern!r}: {checks.shortened(settings, 100)}")
    lines += [f"  {line}" for line in _chains(model)]
    return "\n".join(lines)


def _sizes(config) -> Iterator[str]:
    for field, name in _SIZES.items():
        if (value := getattr(config, field, None)) is not None:
            yield f"{name} {value:,}"


def _counts(model: "Model") -> str:
    """Parameters by role, and the bytes of all."""
    counts, num_bytes = dict.fromkeys(nn.ROLES, 0), 0
    for _, variable in nnx.to_flat_state(nnx.state(model, nn.STORED)):
        size = math.prod(variable.shape)
        counts[nn.role_of(variable)] += size
        num_bytes += size * np.dtype(variable.dtype).itemsize
    parts = ", ".join(f"{role} {count:,}" for role, count in counts.items() if count)
    return f"{sum(counts.values()):,} parameters ({num_bytes / 1e6:,.1f} MB): {parts}"


def _chains(model: "Model") -> list[str]:
    shapes, sizes = model.shapes, model.config.matrix_sizes()
    if not shapes:
        return [f"all {len(sizes)} matrices dense"]
    kinds: dict[str, list[mpo.MPOShape]] = {}
    for path in sizes:
        if path in shapes:
            kinds.setdefault(re.sub(r"/\d+/", "/*/", path), []).append(shapes[path])
    rows = [f"{path}: {_chain(group)}" for path, group in kinds.items()]
    title = f"{len(shapes)} of {len(sizes)} matrices in MPO form, the others dense:"
    if len(rows) > _MAX_LINES:
        rows[_MAX_LINES:] = [f"... and {len(rows) - _MAX_LINES} more"]
    return [title, *(f"  {row}" for row in rows)]


def _chain(group: list[mpo.MPOShape]) -> str:
    """The matrices of one name in all layers: how many, their size, bonds, and parameters each."""
    first = group[0]
    dense = f"{first.in_features * first.out_features:,}"
    count = f"{len(group)} x " if len(group) > 1 else ""
    size = f"{count}{first.in_features}x{first.out_features}"
    if len(set(group)) == 1:
        bonds = ",".join(map(str, first.bonds))
        return f"{size}, bonds {bonds}, {dense} -> {first.num_params:,} parameters"
    largest = [max(shape.bonds, default=1) for shape in group]
    held = [shape.num_params for shape in group]
    return (
        f"{size}, largest bonds {min(largest)} to {max(largest)}, {dense} -> {min(held):,} to "
        f"{max(held):,} parameters"
    )
