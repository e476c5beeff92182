"""The package as a whole: what importing it costs, and what its configs hold."""

import pathlib
import subprocess
import sys

import jax.numpy as jnp
import numpy as np

from mpojax import mpo

ROOT = pathlib.Path(__file__).parents[1]

# Everything beyond jax and flax; `import mpojax` must not touch it.
HEAVY = (
    "absl.app,grain,matplotlib,ml_collections,optax,orbax,rich.progress,safetensors,sklearn,"
    "tensorboardX,tokenizers,torch,transformers"
)

BLOCKED = f"""
import sys
for name in {HEAVY.split(",")!r}:
    sys.modules[name] = None  # importing it raises ImportError
import mpojax, mpojax.mpo
assert mpojax.__version__
print(len(mpojax.mpo.__all__))
for name in ("optax", "orbax", "rich.progress"):
    del sys.modules[name]
import mpojax.nn, mpojax.models
"""


def run(code: str) -> str:
    """Output of a program in a process of its own, where a warning is an error."""
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_needs_only_jax_and_flax_and_layers_and_models_nothing_heavy():
    assert int(run(BLOCKED)) > 20


def test_experiments_start_without_what_only_some_runs_use():
    """tensorboardX alone would load all of torch; fsspec is for stores."""
    late = ["fsspec", "matplotlib", "sklearn", "tensorboardX", "torch", "transformers"]
    imports = f"sys.modules |= dict.fromkeys({late})\nimport experiments.train, mpojax.data"
    run(f"import sys\n{imports}\nassert 'tensorflow_datasets' not in sys.modules")


def test_the_kernel_example_of_the_readme(capsys):
    """The second Python block of the README, word for word."""
    rng = np.random.default_rng(0)
    names = {
        "mpo": mpo,
        "w": rng.standard_normal((768, 3072)).astype(np.float32),
        "x": jnp.asarray(rng.standard_normal((2, 768)), jnp.float32),
    }
    code = (ROOT / "README.md").read_text(encoding="utf-8").split("```python\n")[2].split("```")[0]
    exec(code, names)
    assert max(core.shape[3] for core in names["small"]) == 64
    assert mpo.relative_error(names["w"], mpo.to_matrix(names["cores"])) < 1e-6
    expected = np.asarray(names["x"]) @ mpo.to_matrix(names["small"])
    np.testing.assert_allclose(names["y"], expected, rtol=0, atol=1e-3)
    assert "rebuild" in capsys.readouterr().out


LAYERS = ["mpo", "nn", "models", "compression", "io", "data", "training", "methods"]


def test_imports_point_down_only():
    """A part may import itself and the parts before it; io and data do not know each other."""
    allowed = {name: LAYERS[: LAYERS.index(name) + 1] for name in LAYERS}
    allowed["data"] = ["data"]
    allowed["training"] = ["mpo", "nn", "data", "training"]
    for part, parts in allowed.items():
        for path in (ROOT / "mpojax" / part).rglob("*.py"):
            for line in path.read_text(encoding="utf-8").splitlines():
                line = line.strip()
                if line.startswith(("from mpojax.", "import mpojax.")):
                    imported = {line.split()[1].split(".")[1]}
                elif line.startswith("from mpojax import "):
                    imported = {n.split(" as ")[0] for n in line[19:].replace(",", " ").split()}
                else:
                    continue
                wrong = (imported & set(LAYERS)) - set(parts)
                assert not wrong, f"{path}: {line}"


def test_mpo_knows_only_jax_and_what_it_stands_on():
    standard = set(sys.stdlib_module_names) | {"jax", "numpy", "scipy", "mpojax"}
    for path in (ROOT / "mpojax" / "mpo").rglob("*.py"):
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith(("import ", "from ")):
                assert line.split()[1].split(".")[0] in standard, f"{path}: {line}"
