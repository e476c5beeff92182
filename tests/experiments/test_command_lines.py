"""Mistyped command lines: one line that names field, value and what is allowed, and status 2."""

import importlib
import json
import os
import pathlib
import subprocess
import sys

import pytest
from flax import nnx

from experiments import config_fields, launch
from mpojax import data, io, models
from tests.experiments.test_compress import SETTINGS, WORDS
from tests.io import language_helpers

ROOT = pathlib.Path(__file__).parents[2]
BASE = "--config=configs/mpop/base.py"
# (module, arguments after the common ones, what the one line says)
LINES = [
    # Names of fields.
    ("finetune", ["--config.learning_rate=1e-3"], "--config.optimizer.learning_rate=1e-3?"),
    ("finetune", ["--config.stepz=5"], "did you mean --config.steps=5?"),
    ("finetune", ["--config.optimizer.lr=5"], "did you mean --config.optimizer.learning_rate=5?"),
    ("finetune", ["--config.mesh.data=2"], "--config.mesh=\"{'data': 2}\""),
    ("finetune", ["--config.qqqq=2"], "has no such field; it has grad_accum_steps, adapter_phase"),
    ("pretrain", ["--config.masking.ratee=0.1"], "did you mean --config.masking.rate=0.1?"),
    ("compress", ["--config.variants.mpo.bnd=3"], "did you mean --config.variants.mpo.bond=3?"),
    ("sweep", ["--config.cell.stepz=1"], "did you mean --config.cell.steps=1?"),
    ("finetune", ["--config.accumulate=2"], "is called --config.grad_accum_steps=2 now"),
    ("sweep", ["--config.cell.start_from=x"], "called --config.cell.init_checkpoint=x now"),
    # Types.
    ("finetune", ["--config.steps=1e1"], "--config.steps=1e1 must be an integer"),
    ("finetune", ["--config.keep_best=maybe"], "must be True or False; the default is False"),
    ("finetune", ["--config.optimizer=5"], "--config.optimizer=5 must be a mapping"),
    ("finetune", ["--config.rules=5"], "config.rules=(5,) must be a list, each a pair of"),
    ("finetune", ["--config.rules=(('a', [3]),)"], "config.rules=(('a', [3]),) must be a list"),
    ("finetune", ["--config.adapters=5"], "config.adapters=(5,) must be a list, each a pair"),
    ("finetune", ["--config.matrices=("], "must be a list, each a regular expression"),
    # Bounds.
    ("finetune", ["--config.seed=99999999999999999999"], "must be an integer from 0 to 92233"),
    ("finetune", ["--config.seed=-1"], "config.seed=-1 must be an integer from 0"),
    ("finetune", ["--config.checkpoint_every=-1"], "config.checkpoint_every=-1 must be an int"),
    ("finetune", ["--config.eval_every=-5"], "config.eval_every=-5 must be an integer of at lea"),
    (
        "finetune",
        ["--config.lengths=(0,)"],
        "config.lengths=(8, 0) must be a list, each an integer",
    ),
    ("finetune", ["--config.train_examples=-1"], "must be an integer of at least 0 (0: all)"),
    ("finetune", ["--config.dev_examples=-3"], "must be an integer of at least 0 (0: all)"),
    ("finetune", ["--config.optimizer.learning_rate=nan"], "learning_rate=nan must be a finite"),
    ("finetune", ["--config.optimizer.learning_rate=inf"], "learning_rate=inf must be a finite"),
    ("finetune", ["--config.optimizer.role_learning_rates={'other': 'x'}"], "each a finite num"),
    (
        "finetune",
        ["--config.optimizer.role_learning_rates={'auxillary': 1e-4}"],
        "names out of central, auxiliary, adapter, other",
    ),
    ("finetune", ["--config.mesh={'data': 'x'}"], "config.mesh={'data': 'x'} must be a mapping"),
    ("finetune", ["--config.mesh={'dat': 1}"], "names out of data, fsdp, tensor, expert"),
    ("finetune", ["--config.dtype=float16"], "must be one of 'float32', 'bfloat16'"),
    (
        "finetune",
        ["--config.batch_size=8", "--config.grad_accum_steps=3"],
        "make it a multiple of that",
    ),
    ("pretrain", ["--config.eval_rows=-1"], "config.eval_rows=-1 must be an integer of at least"),
    ("pretrain", ["--config.model.num_cores=1"], "config.model.num_cores=1 must be an integer of"),
    ("pretrain", ["--config.model.num_layers=0"], "config.model.num_layers=0 must be an integer"),
    ("sweep", ["--config.seeds=a"], "config.seeds=('a',) must be a list, each an integer"),
    # Config files.
    ("finetune", ["--config=configs/mpop/bas.py"], "did you mean configs/mpop/base.py?"),
    ("finetune", [f"{BASE}:argument"], "this config takes no argument"),
    ("finetune", ["--config=configs/mpop/minilm.py:foo,sst2"], "the argument is VARIANT,TASK"),
    ("finetune", ["--config=configs/mpop/minilm.py:dense"], "the argument is VARIANT,TASK"),
    ("finetune", ["--config=FOLDER/syntax.py"], "syntax.py, line 2: "),
    ("finetune", ["--config=FOLDER/empty.py"], "has no function get_config"),
    (
        "finetune",
        ["--config=FOLDER/raises.py"],
        "raises.py: ZeroDivisionError: division by zero (raises.py, line 2)",
    ),
    ("finetune", ["--config=FOLDER/wrong.py"], "get_config must return a ConfigDict, not 5"),
    ("finetune", ["--config=configs/mpobert/pretraining.py"], "is of another entry point than"),
    ("finetune", ["--config.steps=1", "--no-config"], "--config=FILE is missing, a config file"),
    ("finetune", ["--nope=1"], "Unknown command line flag 'nope'"),
    ("finetune", ["steps=3"], "unexpected argument 'steps=3'; options start with --"),
    ("finetune", ["--workdir="], "--workdir=FOLDER is missing"),
    ("finetune", ["--compilation_cache=FOLDER/t.tsv"], "a file stands where a folder is needed"),
    ("finetune", ["--config.stepz", "5"], "did you mean --config.steps=5?"),
    ("finetune", ["--noconfig.keepbest"], "did you mean --noconfig.keep_best?"),
    ("finetune", ["--config.bond=None"], "must be an integer; leave it out for the default, None"),
    ("finetune", ["--config=~/x.py"], "there is no file ~/x.py"),
    # Tools.
    ("tools.train_tokenizer", ["--text=FOLDER"], "--out=... is missing: New folder of the tok"),
    ("tools.prepare_corpus", ["--text=FOLDER/no", "--out=FOLDER/x"], "vocab_size=None"),
    ("tools.texts.fetch", ["--nope"], "Unknown command line flag 'nope'"),
    # What depends on model and data, before anything is trained.
    ("finetune", ["--config.model=FOLDER/gpt2"], "gpt2 is no encoder: experiments.language_model"),
    ("finetune", ["--config.max_length=512"], "is more than the 16 positions of"),
    ("finetune", ["--config.batch_size=1000000"], "is more than ten times the 20 training examp"),
]
CONFIGS = {
    "finetune": BASE,
    "pretrain": "--config=configs/mpobert/pretraining.py",
    "compress": "--config=configs/compress.py",
    "sweep": "--config=configs/sweeps/bond_dims.py",
}


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """Status and stderr of every line, and the folder of their inputs."""
    folder = tmp_path_factory.mktemp("inputs")
    commands = [_command(folder, number, *line[:2]) for number, line in enumerate(LINES)]
    _write_inputs(folder)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
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
    if module == "finetune":
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
    return [f"experiments.{module}", f"--workdir={folder / 'runs' / str(number)}", *arguments]


def _write_inputs(folder):
    io.export_huggingface(models.build(SETTINGS, rngs=nnx.Rngs(0)), folder / "model")
    (folder / "model" / "vocab.txt").write_text("\n".join(WORDS), encoding="utf-8")
    decoder = models.build(language_helpers.GPT2, rngs=nnx.Rngs(0))
    io.export_huggingface(decoder, folder / "gpt2")
    data.Tokenizer.from_folder(folder / "model").save(folder / "gpt2")
    rows = "good fine film\tgood\nbad poor plot\tbad\n" * 10
    (folder / "t.tsv").write_text("text\tlabel\n" + rows)
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


RUNNERS = {
    "pretrain": ("configs/mpobert/base*.py", "configs/mpobert/pretraining.py"),
    "multitask": ("configs/mpobert/multitask.py",),
    "text_to_text": ("configs/mpoe/t5.py", "configs/mpoe/multitask.py"),
    "language_model": ("configs/mpoe/gpt2.py", "configs/mpoe/base.py"),
    "compress": ("configs/compress.py", "configs/quickstart.py"),
    "sweep": ("configs/sweeps/*.py",),
    "finetune": ("configs/mpop/*.py", "configs/mpobert/finetune.py", "configs/mpobert/fewshot.py"),
    "distill": ("configs/opdf/*.py",),
    "opf": ("configs/opf/*.py",),
    "pet_search": ("configs/pet_search/*.py",),
}
# Of others, without an entry point.
SHARED = {"recipes", "systems", "paper", "rows", "__init__"}


def test_every_config_has_the_fields_of_its_entry_point():
    """`launch.run(main, FIELDS)` refuses no config that is here, and every value is allowed."""
    seen = set()
    for runner, patterns in RUNNERS.items():
        fields = _fields_of(runner)
        for path in sorted(path for pattern in patterns for path in ROOT.glob(pattern)):
            if path.stem in SHARED:
                continue
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            config = importlib.import_module(name).get_config()
            assert set(fields) <= set(config), path
            if runner == "sweep":
                config_fields.check_axes(config)
            config_fields.check(config.get("cell", config))
            seen.add(path)
    assert {p for p in ROOT.glob("configs/**/*.py") if p.stem not in SHARED} == seen


def _fields_of(runner: str) -> list[str]:
    """What the module hands to `launch.run`."""
    given = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "run", lambda main, fields, **_: given.extend(fields))
        source = (ROOT / "experiments" / f"{runner}.py").read_text(encoding="utf-8")
        last = source[source.index('if __name__ == "__main__":') :].splitlines()[1].strip()
        exec(last, vars(importlib.import_module(f"experiments.{runner}")))
    return given


def test_every_field_with_bounds_is_one_of_some_config():
    from configs import compress, quickstart
    from configs.mpobert import multitask, pretraining
    from configs.mpoe import base as mpoe
    from configs.opdf import base as opdf
    from configs.pet_search import base as pet_search

    modules = (compress, quickstart, multitask, pretraining, mpoe, opdf, pet_search)
    known = {name for module in modules for name, _ in config_fields.leaves(module.get_config())}
    assert set(config_fields.FIELDS) <= known
