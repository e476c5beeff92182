"""Mistyped command lines: one line that names field, value and what is allowed, and status 2."""

import importlib
import json
import os
import pathlib
import subprocess
import sys

import pytest
from flax import nnx

from experiments import config_fields
from mpojax import data, io, models
from mpojax.methods import options
from tests.experiments.toy_encoder import SETTINGS, WORDS
from tests.io import language_helpers

ROOT = pathlib.Path(__file__).parents[2]
BASE = "--config=configs/mpop/base.py"
# (module, arguments after the common ones, what the one line says)
LINES = [
    # Names of fields.
    ("train", ["--config.learning_rate=1e-3"], "--config.optimizer.learning_rate=1e-3?"),
    ("train", ["--config.stepz=5"], "did you mean --config.steps=5?"),
    ("train", ["--config.optimizer.lr=5"], "did you mean --config.optimizer.learning_rate=5?"),
    ("train", ["--config.mesh.data=2"], "--config.mesh=\"{'data': 2}\""),
    ("train", ["--config.qqqq=2"], "has no such field; it has adapter_phase, adapters"),
    ("pretraining", ["--config.masking.ratee=0.1"], "did you mean --config.masking.rate=0.1?"),
    ("compress", ["--config.variants.mpo.bnd=3"], "did you mean --config.variants.mpo.bond=3?"),
    ("sweep", ["--config.cell.stepz=1"], "did you mean --config.cell.steps=1?"),
    ("train", ["--config.accumulate=2"], "is called --config.grad_accum_steps=2 now"),
    ("sweep", ["--config.cell.start_from=x"], "called --config.cell.init_checkpoint=x now"),
    # Types.
    ("train", ["--config.steps=1e1"], "--config.steps=1e1 must be an integer"),
    ("train", ["--config.keep_best=maybe"], "must be True or False; the default is False"),
    ("train", ["--config.optimizer=5"], "--config.optimizer=5 must be a mapping"),
    ("train", ["--config.rules=5"], "config.rules=(5,) must be a list, each a pair of"),
    ("train", ["--config.rules=(('a', [3]),)"], "config.rules=(('a', [3]),) must be a list"),
    ("train", ["--config.adapters=5"], "config.adapters=(5,) must be a list, each a pair"),
    ("train", ["--config.matrices=("], "must be a list, each a regular expression"),
    # Bounds.
    ("train", ["--config.seed=99999999999999999999"], "must be an integer from 0 to 92233"),
    ("train", ["--config.seed=-1"], "config.seed=-1 must be an integer from 0"),
    ("train", ["--config.checkpoint_every=-1"], "config.checkpoint_every=-1 must be an int"),
    ("train", ["--config.eval_every=-5"], "config.eval_every=-5 must be an integer of at lea"),
    (
        "train",
        ["--config.lengths=(0,)"],
        "config.lengths=(8, 0) must be a list, each an integer",
    ),
    ("train", ["--config.train_examples=-1"], "must be an integer of at least 0 (0: all)"),
    ("train", ["--config.dev_examples=-3"], "must be an integer of at least 0 (0: all)"),
    ("train", ["--config.optimizer.learning_rate=nan"], "learning_rate=nan must be a finite"),
    ("train", ["--config.optimizer.learning_rate=inf"], "learning_rate=inf must be a finite"),
    ("train", ["--config.optimizer.role_learning_rates={'other': 'x'}"], "each a finite num"),
    (
        "train",
        ["--config.optimizer.role_learning_rates={'auxillary': 1e-4}"],
        "names out of central, auxiliary, adapter, other",
    ),
    ("train", ["--config.mesh={'data': 'x'}"], "config.mesh={'data': 'x'} must be a mapping"),
    ("train", ["--config.mesh={'dat': 1}"], "names out of data, fsdp, tensor, expert"),
    ("train", ["--config.dtype=float16"], "must be one of 'float32', 'bfloat16'"),
    (
        "train",
        ["--config.batch_size=8", "--config.grad_accum_steps=3"],
        "make it a multiple of that",
    ),
    (
        "pretraining",
        ["--config.eval_rows=-1"],
        "config.eval_rows=-1 must be an integer of at least",
    ),
    (
        "pretraining",
        ["--config.model.num_cores=1"],
        "config.model.num_cores=1 must be an integer of",
    ),
    (
        "pretraining",
        ["--config.model.num_layers=0"],
        "config.model.num_layers=0 must be an integer",
    ),
    ("sweep", ["--config.seeds=a"], "config.seeds=('a',) must be a list, each an integer"),
    # Config files.
    ("train", ["--config=configs/mpop/bas.py"], "did you mean configs/mpop/base.py?"),
    ("train", [f"{BASE}:argument"], "this config takes no argument"),
    ("train", ["--config=configs/mpop/minilm.py:foo,sst2"], "the argument is VARIANT,TASK"),
    ("train", ["--config=configs/mpop/minilm.py:dense"], "the argument is VARIANT,TASK"),
    ("train", ["--config=FOLDER/syntax.py"], "syntax.py, line 2: "),
    ("train", ["--config=FOLDER/empty.py"], "has no function get_config"),
    (
        "train",
        ["--config=FOLDER/raises.py"],
        "raises.py: ZeroDivisionError: division by zero (raises.py, line 2)",
    ),
    ("train", ["--config=FOLDER/wrong.py"], "get_config must return a ConfigDict, not 5"),
    ("train", ["--config=configs/sweeps/bond_dims.py"], "run it by `python -m experiments.sweep`"),
    ("train", ["--config.steps=1", "--no-config"], "--config=FILE is missing, a config file"),
    ("train", ["--nope=1"], "Unknown command line flag 'nope'"),
    ("train", ["steps=3"], "unexpected argument 'steps=3'; options start with --"),
    ("train", ["--workdir="], "--workdir=FOLDER is missing"),
    ("train", ["--num_processes=2"], "a run of several processes needs --coordinator"),
    ("train", ["--distributed"], "--distributed found no cluster"),
    ("train", ["--compilation_cache=FOLDER/t.tsv"], "a file stands where a folder is needed"),
    ("train", ["--config.stepz", "5"], "did you mean --config.steps=5?"),
    ("train", ["--noconfig.keepbest"], "did you mean --noconfig.keep_best?"),
    ("train", ["--config.bond=None"], "must be an integer; leave it out for the default, None"),
    ("train", ["--config=~/x.py"], "there is no file ~/x.py"),
    # Tools.
    (
        "tools.train_tokenizer",
        ["--text=file:train=FOLDER/t.txt", "--out=FOLDER/x", "--vocab_size=9"],
        "vocab_size=9 must be above 259",
    ),
    ("tools.train_tokenizer", ["--text=FOLDER"], "--out=... is missing: New folder of the tok"),
    ("tools.prepare_corpus", ["--text=FOLDER/no", "--out=FOLDER/x"], "vocab_size=None"),
    ("tools.texts.fetch", ["--nope"], "Unknown command line flag 'nope'"),
    # Evaluation.
    ("experiments.evaluate", ["--texts=x"], "--model=... is missing: Folder, GGUF file, hub id"),
    ("experiments.evaluate", ["--model=x", "--window=a"], "flag --window=a"),
    ("experiments.evaluate", ["--model=x", "--window=1"], "--window=1 must be an integer of at"),
    ("experiments.evaluate", ["--model=FOLDER/gpt2", "--task=file:dev=x"], "no file"),
    # What depends on model and data, before anything is trained.
    ("train", ["--config.model=FOLDER/gpt2"], "gpt2 is no encoder: configs/mpoe/base.py tunes"),
    ("train", ["--config.max_length=512"], "is more than the 16 positions of"),
    ("train", ["--config.batch_size=1000000"], "is more than ten times the 20 training examp"),
]
CONFIGS = {
    "train": BASE,
    "pretraining": "--config=configs/mpobert/pretraining.py",
    "compress": "--config=configs/compress.py",
    "sweep": "--config=configs/sweeps/bond_dims.py",
}


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """Status and stderr of every line, and the folder of their inputs."""
    folder = tmp_path_factory.mktemp("inputs")
    commands = [_command(folder, number, *line[:2]) for number, line in enumerate(LINES)]
    _write_inputs(folder)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "SLURM_JOB_ID": ""}
    run = subprocess.run(
        [sys.executable, "-m", "tests.experiments.run_lines"],
        input="".join(json.dumps(command) + "\n" for command in commands),
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
        timeout=300,
        check=True,
    )
    return folder, [json.loads(line) for line in run.stdout.splitlines()]


def _command(folder, number, module, arguments) -> list[str]:
    arguments = [argument.replace("FOLDER", str(folder)) for argument in arguments]
    if "." in module:
        return [module, *arguments]
    if module == "train":
        arguments[:0] = [
            f"--config.model={folder / 'model'}",
            "--config.task=file:train=t.tsv,dev=t.tsv",
            f"--config.data_dir={folder}",
            "--config.max_length=8",
            "--config.lengths=(8,)",
        ]
    if "--no-config" in arguments:
        arguments = arguments[:-1]
    elif any(argument.startswith("--config=") for argument in arguments):
        arguments = [a for a in arguments if not a.startswith("--config.")]
    else:
        arguments.insert(0, CONFIGS[module])
    entry = "train" if module == "pretraining" else module
    return [f"experiments.{entry}", f"--workdir={folder / 'runs' / str(number)}", *arguments]


def _write_inputs(folder):
    io.export_huggingface(models.build(SETTINGS, rngs=nnx.Rngs(0)), folder / "model")
    (folder / "model" / "vocab.txt").write_text("\n".join(WORDS), encoding="utf-8")
    decoder = models.build(language_helpers.GPT2, rngs=nnx.Rngs(0))
    io.export_huggingface(decoder, folder / "gpt2")
    data.Tokenizer.from_folder(folder / "model").save(folder / "gpt2")
    rows = "good fine film\tgood\nbad poor plot\tbad\n" * 10
    (folder / "t.tsv").write_text("text\tlabel\n" + rows)
    (folder / "t.txt").write_text("good fine film\n")
    (folder / "syntax.py").write_text("\ndef get_config(:\n")
    (folder / "empty.py").write_text("x = 1\n")
    (folder / "raises.py").write_text("def get_config():\n    return 1 / 0\n")
    (folder / "wrong.py").write_text("def get_config():\n    return 5\n")


@pytest.mark.parametrize("number", range(len(LINES)), ids=[str(line[:2]) for line in LINES])
def test_a_mistake_is_one_line_and_leaves_nothing_behind(answers, number):
    folder, found = answers
    lines = [
        line for line in found[number]["stderr"].splitlines() if not line.startswith(("I1", "W1"))
    ]
    assert len(lines) == 1, found[number]["stderr"]
    assert lines[0].startswith("error: ")
    assert LINES[number][2] in lines[0]
    assert len(lines[0]) < 1500
    assert found[number]["status"] == 2
    assert not (folder / "runs" / str(number)).exists()


# Of others, without an entry point.
SHARED = {"recipes", "systems", "rows", "common", "__init__"}


def test_every_value_of_every_config_is_allowed():
    for path in ROOT.glob("configs/**/*.py"):
        if path.stem in SHARED:
            continue
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        config = importlib.import_module(name).get_config()
        if path.parent.name == "sweeps":
            config_fields.check_axes(config)
        config_fields.check(config.get("cell", config))
        options.read_all(config.get("cell", config))


def test_every_field_with_bounds_is_one_of_some_config():
    from configs import compress, quickstart_encoder
    from configs.mpobert import multitask, pretraining
    from configs.mpoe import base as mpoe
    from configs.opdf import base as opdf
    from configs.pet_search import base as pet_search

    modules = (compress, quickstart_encoder, multitask, pretraining, mpoe, opdf, pet_search)
    known = {name for module in modules for name, _ in config_fields.leaves(module.get_config())}
    assert set(options.FIELDS) <= known
