"""Matrices worked on side by side: numpy and LAPACK run outside the interpreter's lock."""

from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from typing import TypeVar

import threadpoolctl

from mpojax import devices

T = TypeVar("T")
R = TypeVar("R")

# Each holds float64 copies of a large matrix.
_MOST = 4

# BLAS with one thread: on factorisations of these sizes more gain little on an idle machine, and on
# a busy one lose tenfold, as they wait for each other.
one_blas_thread = threadpoolctl.threadpool_limits.wrap(limits=1, user_api="blas")


def each(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """`function` of each item, in order, in as many threads as there are cores, up to 4."""
    with futures.ThreadPoolExecutor(min(devices.num_cores(), _MOST)) as pool:
        yield from pool.map(function, items)
