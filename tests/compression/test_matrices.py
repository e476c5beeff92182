"""Matrices worked on side by side."""

import threading

import jax.numpy as jnp
import numpy as np
import threadpoolctl
from flax import nnx

import mpojax as mj
from mpojax.compression import matrices


def test_results_are_in_order_and_come_from_threads():
    def square(number):
        return number**2, threading.current_thread() is not threading.main_thread()

    assert list(matrices.side_by_side(square, range(20))) == [(n**2, True) for n in range(20)]


def test_blas_works_with_one_thread_while_a_model_is_compressed():
    model = nnx.Sequential(nnx.Linear(8, 8, rngs=nnx.Rngs(0)), nnx.Linear(8, 8, rngs=nnx.Rngs(1)))
    texts = [jnp.asarray(np.random.default_rng(0).standard_normal((16, 8)), jnp.float32)]
    seen = []

    def progress(*_):
        pools = threadpoolctl.threadpool_info()
        seen.extend(pool["num_threads"] for pool in pools if pool["user_api"] == "blas")

    mj.compress(model, budget=0.7, calibration=texts, method="pivoted", progress=progress)
    assert set(seen) == {1}
