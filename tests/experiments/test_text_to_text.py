"""Runs of encoder-decoders on tasks as text to text, on texts of toy size."""

import jax
import numpy as np
import pytest
from flax import nnx

from experiments import runs, train
from experiments.tasks import answers, loading, text_to_text
from mpojax import data, io, models, training
from mpojax.methods.mpoe import router_statistics
from mpojax.training.tasks import language_modeling
from tests.experiments import toy, toy_language
from tests.experiments.toy import result_of
from tests.experiments.toy_language import logged, put

PAIR = {
    "kind": "encoder_decoder",
    "hidden_size": 32,
    "num_layers": 1,
    "num_heads": 2,
    "head_size": 16,
    "intermediate_size": 32,
    "relative_buckets": 8,
    "relative_distance": 16,
    "tied": False,  # a tied table starts small, and learns slowly
    "dropout": 0.0,
}
GOOD, BAD = ("good film", "fine good plot"), ("bad film", "poor bad plot")
MOOD = "file:train=mood.tsv,dev=mood.tsv,test=flipped.tsv;name=mood"
SCORE = "file:train=score.tsv,dev=score.tsv,test_hidden=hidden.tsv;kind=regression;name=score"
ECHO = "pairs:train=echo.tsv,dev=echo.tsv;prefix=say:;name=echo"
EXPERTS = {"experts__form": "mpoe", "experts__number": 2, "experts__cores": 3}


def write_texts(folder):
    """Eight examples of each task, and a tokenizer in `words`."""

    def table(name, columns, rows):
        lines = ["\t".join(columns), *("\t".join(row) for row in rows)]
        (folder / f"{name}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")

    sources = [f"{text} {n}" for n in range(2) for text in (*GOOD, *BAD)]
    is_good = ["good" in text for text in sources]
    pairs = list(zip(sources, is_good, strict=True))
    table("mood", ("text", "label"), [(t, str(int(good))) for t, good in pairs])
    table("flipped", ("text", "label"), [(t, str(int(not good))) for t, good in pairs])
    table("score", ("text", "label"), [(t, "4.6" if good else "0.4") for t, good in pairs])
    table("hidden", ("text",), [(t,) for t, _ in pairs])
    echoes = [(t, "a good one" if good else "such a bad one") for t, good in pairs]
    table("echo", ("source", "target"), echoes)
    words = "mood score say: sentence: a such one 0 1 2 3 4 5 . good bad fine poor film plot\n"
    data.train_bpe([words] * 3, 290).save(folder / "words")
    return folder


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    return write_texts(tmp_path_factory.mktemp("texts"))


def config_of(texts, **fields):
    config = toy_language.config(texts, model_config=dict(PAIR), task=MOOD)
    config.max_length, config.target_length = 12, 8
    config.optimizer.learning_rate = 5e-3
    return put(config, fields)


def setup_of(config):
    return runs.set_up(*runs.read(config))


@pytest.fixture(scope="module")
def learnt(texts, tmp_path_factory):
    """A run with experts that learns eight examples by heart; a test split of wrong labels."""
    folder = tmp_path_factory.mktemp("learnt") / "run"
    config = config_of(
        texts, steps=40, eval_every=20, keep_best=True, save_model=True, variant="toy", **EXPERTS
    )
    config.optimizer.central_mask.rate = 0.5
    assert toy.main(config, str(folder)) == 0
    return config, folder


class TestOneTask:
    def test_training_generation_and_reading_work_together(self, learnt):
        _, folder = learnt
        result = result_of(folder)
        assert (result["task"], result["metric_name"]) == ("mood", "accuracy")
        assert result["metric"] == result["metrics"]["accuracy"] == 1.0
        assert result["metrics"]["invalid"] == 0.0
        assert (result["train_examples"], result["dev_examples"]) == (8, 8)
        assert (result["form"], result["experts"], result["mask"]) == ("mpoe", 2, 0.5)
        text = (folder / "summary.txt").read_text(encoding="utf-8")
        assert "mood, toy, seed 0" in text
        assert "test_accuracy            0.0000" in text

    def test_the_best_state_is_that_of_the_development_split(self, learnt):
        """The test split, where every label is wrong, is reported alone."""
        _, folder = learnt
        seen = logged(folder, "dev/accuracy")
        assert list(seen) == [20, 40]
        result = result_of(folder)
        assert result["best_step"] == next(step for step, value in seen.items() if value == 1.0)
        assert set(result["metrics"]) == {*("accuracy", "invalid", "test_accuracy", "test_invalid")}
        assert result["metrics"]["test_accuracy"] == 0.0

    def test_routers(self, learnt):
        _, folder = learnt
        rows = router_statistics.read(folder)
        layers = ("encoder_layer_00", "decoder_layer_00")
        assert [(r["layer"], r["expert"]) for r in rows if r["step"] == 40] == [
            (layer, expert) for layer in layers for expert in range(2)
        ]
        assert (folder / "router.png").is_file()

    def test_the_saved_model_answers(self, learnt, texts):
        config, folder = learnt
        model = io.load_pretrained(folder / "model")
        assert isinstance(model, models.EncoderDecoder)
        assert sum(models.count_parameters(model).values()) == result_of(folder)["total"]
        words = data.Tokenizer.from_folder(folder / "model")
        task = data.load_text_to_text(MOOD, texts)
        arrays = task["train"].encode(words, config.max_length, 4)
        for beams in (1, 2):
            evaluate = answers.AnswersEvaluator({"mood": task}, words, {"mood": 2}, beams)
            metrics = evaluate(model, {"mood": data.EvalData(arrays, 3)})
            assert metrics == {"accuracy": 1.0, "invalid": 0.0}
        graph, state = nnx.split(model)
        broken = nnx.merge(graph, jax.tree.map(lambda x: x * np.nan, state))
        with pytest.raises(training.NonFiniteOutputError, match=r"^mood/accuracy: .*batch 1 of"):
            evaluate(broken, {"mood": data.EvalData(arrays, 3)})

    def test_a_finished_run_is_known(self, learnt, monkeypatch):
        monkeypatch.setattr(text_to_text.TextToText, "setup", None)
        assert train.run(*learnt) == 0

    # The saved model: above; that no steps only evaluate: test_finetune.py, test_language_model.py.
    @pytest.mark.slow
    def test_no_steps_only_evaluate(self, learnt, tmp_path):
        config, folder = learnt
        config = config.copy_and_resolve_references()
        config.model, config.tokenizer, config.steps = str(folder / "model"), "", 0
        config.experts.form = "dense"  # the saved model has its experts
        config.model_config = {}
        assert train.run(config, tmp_path) == 0
        assert result_of(tmp_path)["metrics"] == pytest.approx(result_of(folder)["metrics"])

    @pytest.mark.slow
    def test_answers_that_are_none_are_wrong(self, texts, tmp_path):
        """Without training."""
        config = config_of(texts, steps=1, beams=2)
        config.optimizer.learning_rate = 0.0
        assert train.run(config, tmp_path / "run") == 0
        metrics = result_of(tmp_path / "run")["metrics"]
        assert metrics["invalid"] == 1.0
        assert metrics["accuracy"] == metrics["test_accuracy"] == 0.0

    @pytest.mark.slow
    def test_an_interrupted_run_resumes(self, texts, tmp_path, stopped_at):
        config = config_of(
            texts, steps=3, checkpoint_every=0, dropout=0.1, save_model=True, **EXPERTS
        )
        config.optimizer.central_mask.rate = 0.5
        assert train.run(config, tmp_path / "straight") == 0
        with stopped_at(2):
            assert train.run(config, tmp_path / "stopped") == 1
        assert train.run(config, tmp_path / "stopped") == 0
        one, other = (result_of(tmp_path / name) for name in ("straight", "stopped"))
        assert one["metrics"] == other["metrics"]
        assert one["fit"]["metrics"]["loss"] == other["fit"]["metrics"]["loss"]
        arrays = [
            models.to_arrays(io.load_pretrained(tmp_path / name / "model"))
            for name in ("straight", "stopped")
        ]
        for path, array in arrays[0].items():
            np.testing.assert_array_equal(array, arrays[1][path], err_msg=path)


class TestTasks:
    def test_two_tasks(self, texts, tmp_path):
        """Of which one has a test split with labels."""
        config = config_of(texts, task="", tasks=(MOOD, SCORE), steps=2)
        config.train_examples, config.dev_examples = 6, 5
        assert train.run(config, tmp_path / "run") == 0
        result = result_of(tmp_path / "run")
        assert (result["task"], result["metric_name"]) == ("mood+score", "average")
        assert (result["train_examples"], result["dev_examples"]) == (12, 10)
        own = {"mood/accuracy", "mood/invalid"}
        scores = {"score/spearman", "score/pearson", "score/invalid"}
        test = {f"test_{name}" for name in (*own, "average")}
        assert set(result["metrics"]) == own | scores | test | {"average"}

    def test_the_whole_test_split_counts(self, texts):
        job = setup_of(config_of(texts, dev_examples=5))
        assert job.dev["mood"].num_examples == job.num_dev_examples == 5
        assert job.test["mood"].num_examples == 8

    @pytest.mark.slow
    def test_free_texts(self, texts, tmp_path):
        config = config_of(texts, task=ECHO, steps=80)
        assert train.run(config, tmp_path / "run") == 0
        result = result_of(tmp_path / "run")
        assert result["metrics"] == {"bleu": pytest.approx(100.0)}

    def test_padding_of_targets_goes_to_no_expert(self, texts):
        job = setup_of(config_of(texts, task=ECHO, experts__form="switch", experts__number=2))
        batch = job.train[0]
        routing = language_modeling.forward(job.model, batch).routing
        words = data.Tokenizer.from_folder(texts / "words")
        tokens = sum(len(ids) + 1 for ids in words.encode_plain(["a good one", "such a bad one"]))
        assert float(routing[1].tokens[0]) == 4 * tokens < batch["targets"].size
        assert float(routing[0].tokens[0]) == batch["attention_mask"].sum()

    def test_a_fresh_model_starts_with_padding(self, texts):
        config = config_of(texts)
        options = runs.read(config)[2]
        words, _ = loading.tokenizer(options.model)
        model = loading.fresh(options.model, 0, words)
        assert isinstance(model.config, models.EncoderDecoderConfig)
        assert model.config.decoder_start_id == words.pad_id
        assert (model.config.eos_id, model.config.vocab_size) == (words.eos_id, words.vocab_size)


class TestMistakes:
    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"tasks": ("sst2", "rte")}, "just one of them"),
            ({"task": "", "tasks": ("rte", "rte")}, "names a task twice"),
            ({"max_length": 1}, "config.max_length=1 must be an integer of at least 2"),
            ({"target_length": 0}, "config.target_length=0 must be an integer of at least 2"),
            ({"beams": 0}, "config.beams=0 must be an integer of at least 1"),
            (
                {"optimizer__central_mask__rate": -0.5},
                r"rate=-0.5 must be a finite number from 0 to 1",
            ),
            ({"mesh": {"expert": 2}}, "has no experts to split"),
        ],
    )
    def test_without_weights_or_data(self, tmp_path, fields, message):
        config = config_of(tmp_path, **fields)
        with pytest.raises(ValueError, match=message):
            train.check(config)
        with pytest.raises(ValueError, match=message):
            train.run(config, tmp_path / "run")
        assert not (tmp_path / "run").exists()

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            (
                {"model_config": toy_language.DECODER},
                "is no encoder-decoder; decoders are tuned by",
            ),
            ({"task": "", "tasks": (MOOD, MOOD + ";dev=dev")}, "two tasks of one name"),
            ({"task": "", "tasks": (MOOD, ECHO)}, "'echo' has no labels"),
            ({"task": "wrong"}, "unknown task 'wrong'"),
            ({"task": "pairs:train=echo.tsv"}, "has no split 'dev'"),
            ({"temperature": 0.5, "task": "", "tasks": (MOOD, SCORE)}, "temperature=0.5 must be"),
            ({"num_layers_kept": 1}, "the model must be a decoder"),
        ],
    )
    def test_before_the_folder_is_made(self, texts, tmp_path, fields, message):
        with pytest.raises(ValueError, match=message):
            train.run(config_of(texts, **fields), tmp_path / "run")
        assert not (tmp_path / "run").exists()
