"""Every method on every architecture by config, methods of one's own, and the way to the step."""

import contextlib
import dataclasses
import itertools
import pathlib
import traceback
import types

import pytest
from flax import nnx

from configs import heal
from configs.mpop import base
from experiments import command_line, launch, runs, train
from mpojax import io, models, training
from mpojax.methods import protocol
from tests.experiments import toy_encoder, toy_language
from tests.experiments.test_text_to_text import MOOD, PAIR, write_texts
from tests.experiments.toy import result_of

LAYERS = ".*/(query|value|up|down)"
LOW_RANK, BIASES = ((LAYERS, {"rank": 2}),), ((r"(?!head/).*/bias", {"kind": "bias"}),)
SQUEEZE = {"steps": 1, "max_phases": 1, "max_metric_drop": 1e6, "multiple": 2, "factor": 0.5}
SEARCH = {"budget": 200, "rounds": 2, "warm_steps": 1.0, "last_round": 3.0, "score_batches": 1}
# What each combination sets.
METHODS = {
    "low rank": {"adapters": LOW_RANK, "trainable": "adapters"},
    "BitFit": {"adapters": BIASES, "trainable": "adapters"},
    "lightweight": {"matrices": (LAYERS,), "trainable": "lightweight"},
    "compressed": {"matrices": (LAYERS,), "budget": 0.9},
    "calibrated": {
        "matrices": (LAYERS,),
        "settings": {"data_aware": True, "ridge": 0.01},
        "bond": 4,
        "calibration_examples": 16,
    },
    "squeezing": {
        "method": "squeezing",
        "matrices": (LAYERS,),
        "trainable": "lightweight",
        "squeeze": SQUEEZE,
    },
    "search": {
        "method": "pet_search",
        "adapters": LOW_RANK,
        "trainable": "adapters",
        "search": SEARCH,
    },
}


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    return toy_language.write(tmp_path_factory.mktemp("words"))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return write_texts(tmp_path_factory.mktemp("pairs"))


@pytest.fixture
def config(checkpoint, texts):
    config = toy_encoder.config(base.get_config(), checkpoint, texts)
    config.steps = 4
    return config


def decoder(words, pairs):
    made = toy_language.config(words, checkpoint_every=0)
    made.model_config.num_layers = 1
    return made


def encoder_decoder(words, pairs):
    made = toy_language.config(pairs, model_config=dict(PAIR), task=MOOD, checkpoint_every=0)
    made.max_length, made.target_length = 12, 8
    return made


# The others show the same of the architecture, at the price of compiling it again.
QUICK = {(decoder, "low rank"), (encoder_decoder, "search")}


@pytest.mark.parametrize(
    ("architecture", "method"),
    [
        pytest.param(*pair, marks=[] if pair in QUICK else pytest.mark.slow)
        for pair in itertools.product((decoder, encoder_decoder), METHODS)
    ],
)
def test_every_method_on_language_models(words, pairs, tmp_path, architecture, method):
    config = architecture(words, pairs)
    fields = METHODS[method]
    if method == "BitFit" and architecture is encoder_decoder:
        # T5 has no biases.
        fields = fields | {"adapters": ((".*/(key|value)", {"kind": "rescale"}),)}
    config.steps = 2 if method == "squeezing" else 4
    toy_language.put(config, fields)
    assert train.run(config, tmp_path) == 0
    result = result_of(tmp_path)
    if "adapters" in fields or fields.get("trainable") == "lightweight":
        assert 0 < result["trained"] < result["total"]
    if method in ("compressed", "calibrated"):
        assert result["relative_error"] > 0
    if method == "squeezing":
        first, last = result["squeeze"]["phases"]
        assert last["parameters"] < first["parameters"]
        assert last["accepted"]
        assert (tmp_path / "trajectory.csv").is_file()
    if method == "search":
        assert 0 < result["updates"] <= SEARCH["budget"]
        assert (tmp_path / "kept.csv").is_file()
    assert result["metric"] == result["metrics"][result["metric_name"]]


@pytest.mark.slow
def test_a_decoder_over_parameterised(words, pairs, tmp_path):
    config = decoder(words, pairs)
    config.method = "opf"
    with config.unlocked():
        config.opf = {"interval": 1, "num_per_role": 1, "num_per_round": 1}
    assert train.run(config, tmp_path) == 0
    result = result_of(tmp_path)
    assert result["inference_parameters"] < result["train_parameters"]


def test_healing_of_a_decoder_that_the_run_compresses(words, pairs, tmp_path):
    fields = dict(decoder(words, pairs).model_config) | {"vocab_size": 300}
    original = models.build(models.DecoderConfig(**fields), rngs=nnx.Rngs(0))
    io.save_pretrained(original, tmp_path / "original", tokenizer_from=words / "words")
    config = heal.get_config()
    changes = {"matrices": (LAYERS,), "settings": {"form": "low_rank"}, "bond": 4}
    changes |= {"data_dir": str(words), "dataset": toy_language.TEXTS, "steps": 2}
    changes |= {"length": 16, "batch_size": 8, "eval_batch_size": 8, "log_every": 1}
    toy_language.put(config, changes | {"model": str(tmp_path / "original")})
    assert train.run(config, tmp_path / "run") == 0
    result = result_of(tmp_path / "run")
    assert {"start_metrics", "teacher_metrics", "relative_error"} <= result.keys()
    assert result["metrics"] != result["start_metrics"]
    assert 0 < result["trained"] < result["total"]
    healed = io.load_pretrained(tmp_path / "run" / "model")
    assert sum(models.count_parameters(healed).values()) == result["total"]
    assert "before healing" in (tmp_path / "run" / "summary.txt").read_text()


def test_healing_without_a_teacher_says_what_to_give(words, tmp_path):
    config = heal.get_config()
    toy_language.put(config, {"model": "runs/small", "dataset": toy_language.TEXTS})
    with pytest.raises(ValueError, match=r"config\.healing\.teacher is empty.*distill_weight=0"):
        runs.read(config)
    toy_language.put(config, {"healing__distill_weight": 2.0})
    with pytest.raises(ValueError, match=r"config\.healing\.distill_weight=2\.0 must be"):
        runs.read(config)


def test_an_optimizer_without_the_field_of_masks(words, pairs, tmp_path):
    config = decoder(words, pairs)
    config.steps = 1
    with config.unlocked():
        config.optimizer = training.default_config()
    assert train.run(config, tmp_path) == 0
    assert result_of(tmp_path)["mask"] is None


def test_no_steps_have_no_cost(words, pairs):
    config = decoder(words, pairs)
    config.steps = 0
    with pytest.raises(ValueError, match=r"config\.steps=0 only evaluates: no step"):
        runs.dry_run(config)


class Watching(protocol.Method):
    """Notes the frames of the project from the command line to the compiled step."""

    frames: tuple[str, ...] = ()

    def setup(self, setup):
        def loss(model, batch, key):
            stack = traceback.extract_stack()
            Watching.frames = tuple(f"{f.filename}:{f.name}" for f in stack)
            return setup.loss(model, batch, key)

        return dataclasses.replace(setup, loss=loss)

    def report(self, setup, result):
        return {"watched": len(self.frames)}


def test_a_method_of_ones_own(config, tmp_path):
    config.method, config.steps = f"{__name__}:Watching", 1
    assert train.run(config, tmp_path) == 0
    assert result_of(tmp_path)["watched"] == len(Watching.frames) > 0
    config.method = "json:JSONDecoder"
    with pytest.raises(ValueError, match=r"'json:JSONDecoder' is no subclass of mpojax"):
        train.run(config, tmp_path / "other")


# What `python -m experiments.train` goes through; `python -m tools.measures` counts them.
FRAMES = ("<module>", "main", "run", "train", "fit", "fit", "run", "__call__")


def test_eight_frames_from_the_command_line_to_the_compiled_step(config, tmp_path, monkeypatch):
    """The module, and what its `main` calls up to `TrainStep.__call__`."""
    seen, call = [], training.TrainStep.__call__

    def watched(self, *arguments):
        root = pathlib.Path(runs.__file__).parents[1]
        ours = tuple(f"{root / package}/" for package in ("mpojax", "experiments"))
        seen.append([f.name for f in traceback.extract_stack() if f.filename.startswith(ours)])
        return call(self, *arguments)

    config.steps = 1
    given = contextlib.nullcontext((config, str(tmp_path / "run")))
    monkeypatch.setattr(training.TrainStep, "__call__", watched)
    monkeypatch.setattr(launch, "session", lambda *_, **more: given)
    chosen = types.SimpleNamespace(FLAGS=types.SimpleNamespace(dry_run=False, topology=None))
    monkeypatch.setattr(train, "flags", chosen)
    train.main([])
    assert ("<module>", *seen[0], "__call__") == FRAMES
    assert len(FRAMES) <= 8


@pytest.mark.parametrize(
    ("source", "changes", "message"),
    [
        ("opdf/base.py", {"teacher": "T"}, "config.teacher='T' has no meaning with config.method"),
        ("opf/base.py", {"scoring_checkpoint": "T"}, "set config.method='opf', or leave config.sc"),
        ("mpop/base.py", {"squeeze": {"steps": 2}}, "set config.method='squeezing', or leave"),
        ("pet_search/base.py", {"search.budget": 9}, "config.search.budget=9 has no meaning"),
    ],
)
def test_settings_of_another_method_are_not_lost_in_silence(source, changes, message):
    given = command_line.load_config(f"configs/{source}")
    with given.ignore_type(), given.unlocked():
        given.method = "tuning"
        given.update_from_flattened_dict(changes)
    with pytest.raises(ValueError, match=message):
        runs.read(given)
