"""Neurons of a feed-forward block divided into groups of equal size.

"weights": balanced k-means of the directions that neurons read, W[:, j] / ||W[:, j]||, as the
authors do (of a gated block those of gate and up one after the other). "coactivation": the same of
the leading eigenvectors of the graph whose edges say how often two neurons fire together (the
authors cut that graph by METIS).
"""

import numpy as np
import scipy.linalg
import scipy.optimize

CLUSTERS = ("weights", "coactivation")
_ITERATIONS = 10


def directions(maps) -> np.ndarray:
    """(neurons, features): what neurons read, each map at unit length.

    Args:
      maps: (hidden, neurons) each.
    """
    rows = [np.asarray(w, np.float64).T for w in maps]
    return np.concatenate([_unit(each) for each in rows], axis=1) / np.sqrt(len(rows))


def coactivation(activity, dimensions: int) -> np.ndarray:
    """(neurons, dimensions): coordinates in which neurons that fire together are close.

    Args:
      activity: (tokens, neurons), sizes of activations.
      dimensions: leading eigenvectors of D^-1/2 A D^-1/2 with A = activity^T activity.
    """
    a = np.asarray(activity, np.float64)
    graph = a.T @ a
    # A neuron always fires with itself: no edge.
    np.fill_diagonal(graph, 0.0)
    root = np.sqrt(np.maximum(graph.sum(axis=0), 1e-12))
    n = len(graph)
    # `eigh` sorts upwards: the leading eigenvectors are the last ones.
    last = [max(n - dimensions, 0), n - 1]
    vectors = scipy.linalg.eigh(graph / np.outer(root, root), subset_by_index=last)[1]
    return _unit(vectors)


def balanced(points, number: int, seed: int = 0, iterations: int = _ITERATIONS) -> np.ndarray:
    """(n,) group of each point: k-means whose groups have n / number points each.

    Every assignment is the best there is for its centres (Hungarian method), so that the sum of
    squared distances never grows.

    Args:
      points: (n, d); `number` divides n.
      number: of groups.
      seed: of the first centres (k-means++).
      iterations: at most so many.
    """
    points = np.asarray(points, np.float64)
    size, labels = len(points) // number, None
    centres = _first_centres(points, number, np.random.default_rng(seed))
    for _ in range(iterations):
        # ||p - c||^2 without ||p||^2, which no assignment changes; once for each place of a group.
        squares = np.sum(centres**2, axis=1)[None] - 2 * points @ centres.T
        _, places = scipy.optimize.linear_sum_assignment(np.repeat(squares, size, axis=1))
        # Place p of n belongs to group p // size.
        found = places // size
        if labels is not None and np.array_equal(found, labels):
            break
        labels = found
        centres = np.stack([points[labels == g].mean(axis=0) for g in range(number)])
    return labels


def _first_centres(points, number: int, rng) -> np.ndarray:
    """k-means++: far from those that there are (Arthur & Vassilvitskii, 2007)."""
    chosen = [int(rng.integers(len(points)))]
    nearest = np.sum((points - points[chosen[0]]) ** 2, axis=1)
    while len(chosen) < number:
        total = nearest.sum()
        # All points alike: any of them.
        p = nearest / total if total > 0 else None
        chosen.append(int(rng.choice(len(points), p=p)))
        # D(x)^2 = min over the centres so far of (x - c)^2
        nearest = np.minimum(nearest, np.sum((points - points[chosen[-1]]) ** 2, axis=1))
    return points[chosen]


def _unit(rows) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
