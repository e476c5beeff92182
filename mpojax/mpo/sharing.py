"""One first core for several matrices: W_l = A B_l, with A (in, r) stored once.

    min over A, B_1, ..., B_n of  sum_l || S_l^(1/2) (W_l - A B_l) R_l ||_F^2

with covariances S_l of the inputs and curvatures R_l R_l^T of the outputs (see `mpojax.mpo.
weighted`); r (in + n out) numbers instead of the n r (in + out) of chains of their own. Start: A is
the one of the best low rank of all matrices side by side, [W_1 R_1, W_2 R_2, ...], in the
summed metric S_1 + S_2 + ... (Basis Sharing: Wang et al., ICLR 2025, arXiv:2410.03765). Then by
turns, each a least-squares problem, so that the error falls:

    B_l = (A^T S_l A)^-1 A^T S_l W_l
    A solves  sum_l S_l A M_l = sum_l S_l W_l R_l R_l^T B_l^T,   M_l = B_l R_l R_l^T B_l^T
"""

from collections.abc import Sequence

import numpy as np
import scipy.linalg
import scipy.sparse.linalg

from mpojax import checks
from mpojax.mpo.weighted import LowRank, Metric


class SharedLowRank:
    """Approximations of several matrices of one size by chains with the same first core."""

    def __init__(
        self,
        ws: Sequence[np.ndarray],
        covariances: Sequence["Metric | np.ndarray"],
        curvatures: Sequence["Metric | np.ndarray"] | None = None,
    ):
        """`ws` are (in_features, out_features); the others one for each, as for `LowRank`."""
        self.metrics = [Metric.of(each) for each in covariances]
        if curvatures is None:
            self.roots = [np.eye(np.shape(w)[1]) for w in ws]
        else:
            self.roots = [Metric.of(each).cholesky for each in curvatures]
        # W_l R_l: what remains is without a curvature.
        pairs = zip(ws, self.roots, strict=True)
        self.targets = [np.asarray(w, np.float64) @ root for w, root in pairs]
        summed = np.sum([metric.matrix for metric in self.metrics], axis=0)
        self._joint = LowRank(np.concatenate(self.targets, axis=1), summed)

    def _start(self, rank: int) -> np.ndarray:
        return self._joint.cores(rank)[0][0, :, 0]

    @property
    def squared_errors(self) -> np.ndarray:
        """Summed squared error of each rank, from 0 to in_features, before any turn.

        With H_l^T H_l = S_l and the orthonormal columns q_k of H_l A, in order, it is
        sum_l ( ||H_l W_l R_l||^2 - sum_(k <= r) ||q_k^T H_l W_l R_l||^2 ).
        """
        first = self._start(min(self._joint.w.shape))
        gains = np.zeros(first.shape[1])
        total = 0.0
        for metric, target in zip(self.metrics, self.targets, strict=True):
            white = metric.halved(target)
            columns = np.linalg.qr(metric.halved(first))[0]
            gains += np.sum(np.square(columns.T @ white), axis=1)
            total += np.sum(np.square(white))
        return np.maximum(total - np.append(0.0, np.cumsum(gains)), 0.0)

    def cores(self, rank: int, turns: int = 4) -> tuple[np.ndarray, list[np.ndarray]]:
        """The shared core (1, in, 1, rank), and each matrix' own (rank, 1, out, 1).

        Raises:
          ValueError: a rank that no matrix of this size has.
        """
        most = min(self._joint.w.shape)
        checks.check_value("rank", rank, checks.integer(1, most))
        first = self._start(rank)
        seconds = self._seconds(first)
        for _ in range(turns):
            first = self._first(first, seconds)
            seconds = self._seconds(first)
        own = [
            scipy.linalg.solve_triangular(root, b.T, lower=True, trans="T").T  # (B_l R_l) R_l^-1
            for b, root in zip(seconds, self.roots, strict=True)
        ]
        return first[None, :, None, :], [b[:, None, :, None] for b in own]

    def _seconds(self, first) -> list[np.ndarray]:
        """The best B_l R_l to A; of least norm where inputs leave them open."""
        return [
            # min over B of ||H_l (A B - W_l R_l)||_F with H_l^T H_l = S_l
            np.linalg.lstsq(metric.halved(first), metric.halved(target), rcond=1e-12)[0]
            for metric, target in zip(self.metrics, self.targets, strict=True)
        ]

    def _first(self, start, seconds) -> np.ndarray:
        """The best A to the B_l R_l, by conjugate gradients from the last one."""
        # `seconds` are B_l R_l, so that M_l = (B_l R_l) (B_l R_l)^T.
        moments = [b @ b.T for b in seconds]

        def product(flat):
            a = flat.reshape(start.shape)
            pairs = zip(self.metrics, moments, strict=True)
            return sum(metric.times(a) @ m for metric, m in pairs).ravel()

        triples = zip(self.metrics, self.targets, seconds, strict=True)
        right = sum(metric.times(target @ b.T) for metric, target, b in triples)
        operator = scipy.sparse.linalg.LinearOperator((start.size,) * 2, product, dtype=np.float64)
        found, _ = scipy.sparse.linalg.cg(
            operator, right.ravel(), start.ravel(), rtol=1e-10, maxiter=200
        )
        return found.reshape(start.shape)
