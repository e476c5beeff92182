"""Tasks as text to text: words, arrays by hand, answers, own pairs, mixtures."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from mpojax import data
from mpojax.data.text import text_to_text
from tests.data import glue_files


@pytest.fixture(scope="module")
def tokenizer():
    return data.train_bpe(["0 1 2 3 sentence: a b\n"] * 3, 262)


def task_of(kind="classification", labels=(0, 1), pairs=None, name="mine", **fields):
    dtype = np.int32 if kind == "classification" else np.float32
    split = data.Split([f"text {n}" for n in range(len(labels))], np.array(labels, dtype), pairs)
    names = ("no", "yes") if kind == "classification" else ()
    return data.TextTask(name, {"train": split, "dev": split}, names, kind, **fields)


class TestWords:
    @pytest.mark.parametrize(
        ("name", "fields"),
        [
            ("cola", ["sentence"]),
            ("sst2", ["sentence"]),
            ("mrpc", ["sentence1", "sentence2"]),
            ("stsb", ["sentence1", "sentence2"]),
            ("qqp", ["question1", "question2"]),
            ("mnli", ["premise", "hypothesis"]),
            ("qnli", ["question", "sentence"]),
            ("rte", ["sentence1", "sentence2"]),
            ("wnli", ["sentence1", "sentence2"]),
        ],
    )
    def test_sources_and_targets_of_glue(self, tmp_path, name, fields):
        glue_files.write(tmp_path, name)
        plain = data.load_task(name, tmp_path)
        task = data.load_text_to_text(name, tmp_path, paper_splits=False)
        train, made = plain["train"], task["train"]
        columns = [train.texts] if train.pairs is None else [train.texts, train.pairs]
        for row, source in enumerate(made.sources):
            parts = [f"{field}: {c[row]}" for field, c in zip(fields, columns, strict=True)]
            assert source == " ".join([name, *parts])
        if name == "stsb":
            assert made.targets == ["5.0", "0.2", "3.8"]
        else:
            assert made.targets == [str(label) for label in train.labels]
        np.testing.assert_array_equal(made.labels, train.labels)
        test = next(split for split in task.splits if split.startswith("test"))
        assert task[test].targets is None or name == "cola"
        assert (task.kind, task.num_labels, task.metrics, task.dev_split) == (
            plain.kind,
            len(plain.label_names),
            plain.metrics,
            plain.dev_split,
        )

    @pytest.mark.parametrize(
        ("score", "text"), [(2.57, "2.6"), (2.5, "2.4"), (0, "0.0"), (5.0, "5.0"), (4.75, "4.8")]
    )
    def test_scores_in_steps(self, score, text):
        assert text_to_text.target_text(np.float32(score), "regression") == text

    def test_fields_of_other_tasks(self):
        assert text_to_text.from_task(task_of())["dev"].sources[1] == "mine sentence: text 1"
        pairs = text_to_text.from_task(task_of(pairs=["x", "y"]))["dev"]
        assert pairs.sources[1] == "mine sentence1: text 1 sentence2: y"

    def test_spans_are_refused(self):
        split = data.Split(["a"], np.zeros((1, 2), np.int32), ["b"])
        with pytest.raises(ValueError, match="'squad' is a span; only classifications and"):
            text_to_text.from_task(data.TextTask("squad", {"dev": split}, (), "span"))

    def test_no_such_split(self):
        with pytest.raises(ValueError, match=r"no split 'test'; has \['dev', 'train'\]"):
            text_to_text.from_task(task_of())["test"]


class TestArrays:
    def test_by_hand(self, tokenizer):
        a, b, space = (tokenizer.token_to_id(token) for token in ("a", "b", "Ġ"))
        arrays = data.TextPairs(["ab", "a b a"], ["b", ""]).encode(tokenizer, 4, 3)
        end, pad = 2, 0
        expected = {
            "input_ids": [[a, b, end, pad], [*tokenizer.encode_plain(["a b a"])[0][:3], end]],
            "attention_mask": [[1, 1, 1, 0], [1, 1, 1, 1]],
            "decoder_input_ids": [[pad, b, end], [pad, end, pad]],
            "targets": [[b, end, pad], [end, pad, pad]],
            "decoder_attention_mask": [[1, 1, 0], [1, 0, 0]],
            "target_weights": [[1, 1, 0], [1, 0, 0]],
        }
        assert space not in (a, b)
        assert set(arrays) == set(expected)
        for name, values in expected.items():
            np.testing.assert_array_equal(arrays[name], values, err_msg=name)
            assert arrays[name].dtype == (np.float32 if name == "target_weights" else np.int32)

    def test_start_token_and_labels(self, tokenizer):
        pairs = data.TextPairs(["a"], ["ab"], np.array([1], np.int32))
        arrays = pairs.encode(tokenizer, 4, 2, decoder_start=1)
        a = tokenizer.token_to_id("a")
        np.testing.assert_array_equal(arrays["decoder_input_ids"], [[1, a]])
        np.testing.assert_array_equal(arrays["targets"], [[a, 2]])  # cut, but with its end
        np.testing.assert_array_equal(arrays["labels"], [1])

    @hypothesis.given(
        texts=st.lists(st.text(alphabet="ab ", max_size=9), min_size=1, max_size=5),
        length=st.integers(2, 12),
    )
    def test_decoder_inputs_are_the_targets_one_place_later(self, tokenizer, texts, length):
        arrays = data.TextPairs(texts, texts).encode(tokenizer, 16, length)
        weights = arrays["target_weights"].astype(bool)
        assert (arrays["targets"][weights].reshape(-1) != 0).all()
        np.testing.assert_array_equal((arrays["targets"] == 2).sum(1), 1)
        np.testing.assert_array_equal(weights.sum(1), 1 + np.argmax(arrays["targets"] == 2, 1))
        later = np.where(weights, arrays["targets"], 0)[:, :-1]
        np.testing.assert_array_equal(arrays["decoder_input_ids"][:, 1:], later)
        assert (arrays["decoder_input_ids"][:, 0] == 0).all()

    def test_without_targets(self, tokenizer):
        arrays = data.TextPairs(["a"], None).encode(tokenizer, 4)
        assert set(arrays) == {"input_ids", "attention_mask"}

    def test_padding_that_is_the_end_of_text(self):
        gpt2_like = data.train_bpe(["a b"], 260)
        gpt2_like.pad_token, gpt2_like.pad_id = gpt2_like.eos_token, gpt2_like.eos_id
        arrays = data.TextPairs(["a"], ["a"]).encode(gpt2_like, 4, 4)
        np.testing.assert_array_equal(arrays["attention_mask"], [[1, 1, 0, 0]])
        np.testing.assert_array_equal(arrays["target_weights"], [[1, 1, 0, 0]])

    def test_batches(self, tokenizer):
        pairs = data.TextPairs([f"a b {n}" for n in range(10)], [str(n) for n in range(10)])
        arrays = pairs.encode(tokenizer, 16, 4)
        first = data.TrainData(arrays, 4, seed=0, lengths=(8, 16))
        again = data.TrainData(arrays, 4, seed=0, lengths=(8, 16))
        first[0]
        np.testing.assert_equal(first[5], again[5])
        assert first[5]["input_ids"].shape == (4, 8)
        assert first[5]["targets"].shape == (4, 4)
        np.testing.assert_equal(
            first.rows(5, slice(2, 4)), {name: a[2:4] for name, a in first[5].items()}
        )
        evaluation = data.EvalData(arrays, 4)
        assert [batch["example_mask"].sum() for batch in evaluation] == [4, 4, 2]

    def test_take(self):
        pairs = data.TextPairs([*"abcdef"], [*"ABCDEF"], np.arange(6))
        sample = pairs.take(3, seed=1)
        assert [source.upper() for source in sample.sources] == sample.targets
        np.testing.assert_array_equal([ord(s) - 97 for s in sample.sources], sample.labels)
        assert len(pairs.take(9)) == 6
        assert data.TextPairs(["a"], None).take(1).targets is None

    def test_errors(self, tokenizer, tmp_path):
        with pytest.raises(ValueError, match="equal lengths; got"):
            data.TextPairs(["a"], ["b", "c"])
        with pytest.raises(
            ValueError, match="max_target_length=1 must be an integer of at least 2"
        ):
            data.TextPairs(["a"], ["b"]).encode(tokenizer, 4, 1)
        (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\na\n")
        with pytest.raises(ValueError, match="names no end-of-text token"):
            data.TextPairs(["a"], ["b"]).encode(data.Tokenizer.from_folder(tmp_path))


class TestAnswers:
    def test_classes(self):
        task = text_to_text.from_task(task_of())
        assert [task.parse(a) for a in ("0", " 1\n", "2", "yes", "", "-1", "1.0", "01")] == [
            0,
            1,
            None,
            None,
            None,
            None,
            None,
            None,
        ]

    def test_no_class_is_a_wrong_one(self):
        task = text_to_text.from_task(task_of())
        found, failed = task.predictions(["1", "x", "", "0"], np.array([1.0, 1.0, 0.0, 1.0]))
        np.testing.assert_array_equal(found, [1, 0, 1, 0])
        assert failed == 2
        found, failed = task.predictions(["1", "x"])
        np.testing.assert_array_equal(found, [1, 0])
        assert failed == 1
        assert found.dtype == np.int32

    def test_scores(self, tmp_path):
        glue_files.write(tmp_path, "stsb")
        task = data.load_text_to_text("stsb", tmp_path, paper_splits=False)
        answers = ["2.6", " 5 ", "5.2", "-0.2", "nan", "inf", "two", ""]
        found, failed = task.predictions(answers)
        np.testing.assert_allclose(found, [2.6, 5.0, -1, -1, -1, -1, -1, -1])
        assert failed == 6
        assert found.dtype == np.float32

    def test_own_targets_are_right_answers(self, tmp_path):
        for name in ("mnli", "stsb"):
            glue_files.write(tmp_path, name)
            task = data.load_text_to_text(name, tmp_path, paper_splits=False)
            found, failed = task.predictions(task["train"].targets, task["train"].labels)
            np.testing.assert_allclose(found, task["train"].labels, atol=0.1)
            assert failed == 0

    def test_free_text(self):
        task = data.TextToTextTask("x", {})
        with pytest.raises(ValueError, match="answers of 'x' are any text"):
            task.parse("a")

    def test_length_of_targets(self, tokenizer):
        assert text_to_text.from_task(task_of()).target_length(tokenizer) == 2
        scores = text_to_text.from_task(task_of("regression", (1.0, 2.6)))
        assert scores.target_length(tokenizer) == 1 + len(tokenizer.encode_plain(["2.6"])[0])
        assert data.TextToTextTask("x", {}).target_length(tokenizer, 17) == 17


class TestOwnPairs:
    def test_files(self, tmp_path):
        (tmp_path / "a.tsv").write_text('old\tnew\none "\ttwo\nthree\tfour\n')
        (tmp_path / "b.jsonl").write_text('{"old": "x", "new": "y"}\n')
        line = "pairs:train=a.tsv,dev=b.jsonl;source=old;target=new;prefix=translate:;name=mine"
        task = data.load_text_to_text(line, tmp_path)
        assert (task.name, task.kind, task.metrics) == ("mine", "generation", ("bleu",))
        assert task["train"].sources == ['translate: one "', "translate: three"]
        assert task["train"].targets == ["two", "four"]
        assert task["dev"].sources == ["translate: x"]

    def test_defaults(self, tmp_path):
        (tmp_path / "a.csv").write_text("source,target\nx,y\n")
        task = data.load_text_to_text(f"pairs:train={tmp_path}/a.csv")
        assert (task["train"].sources, task["train"].targets) == (["x"], ["y"])

    @pytest.mark.parametrize(
        ("line", "error", "message"),
        [
            ("pairs:a.tsv", ValueError, "'a.tsv' is not of the form name=value.*pairs:train="),
            ("pairs:train=a.tsv;text=x", ValueError, r"unknown options \['text'\]; allowed"),
            ("pairs:train=a.tsv;source=x", ValueError, "no column 'x'; columns are"),
            ("pairs:train=b.tsv", FileNotFoundError, r"no file .*b\.tsv"),
            ("pairs:train=empty.tsv", ValueError, r"empty\.tsv holds no examples"),
        ],
    )
    def test_errors(self, tmp_path, line, error, message):
        (tmp_path / "a.tsv").write_text("source\ttarget\nx\ty\n")
        (tmp_path / "empty.tsv").write_text("source\ttarget\n")
        with pytest.raises(error, match=message):
            data.load_text_to_text(line, tmp_path)


class TestSeveralTasks:
    def arrays(self, tokenizer, count):
        labels = np.arange(count, dtype=np.int32) % 2
        pairs = data.TextPairs([f"a {n}" for n in range(count)], [str(n) for n in labels], labels)
        return pairs.encode(tokenizer, 8, 2)

    def test_shares(self, tokenizer):
        arrays = {"large": self.arrays(tokenizer, 64), "small": self.arrays(tokenizer, 4)}
        made = data.multi_task(arrays, 8, seed=0)
        large, small = 64**0.1, 4**0.1
        assert made.shares == pytest.approx(
            {"large": large / (large + small), "small": small / (large + small)}
        )
        batch = made[3]
        assert batch["decoder_input_ids"].shape == (8, 2)
        assert set(batch["task"]) == {0, 1}
        np.testing.assert_equal(
            data.multi_task(arrays, 8, seed=0).rows(3, slice(0, 4)),
            {name: a[:4] for name, a in batch.items()},
        )
        by_size = data.multi_task(arrays, 8, seed=0, temperature=1.0)
        assert by_size.shares == pytest.approx({"large": 64 / 68, "small": 4 / 68})
        equal = data.multi_task(arrays, 8, seed=0, temperature=float("inf"))
        assert equal.shares == pytest.approx({"large": 0.5, "small": 0.5})

    def test_errors(self, tokenizer):
        with pytest.raises(ValueError, match=r"temperature=0\.5 must be a finite number of at"):
            data.multi_task({"a": self.arrays(tokenizer, 4)}, 2, seed=0, temperature=0.5)


@pytest.mark.parametrize(
    ("value", "names"),
    [
        ("cola,rte", ("cola", "rte")),
        (("cola", "rte"), ("cola", "rte")),
        (("cola,rte",), ("cola", "rte")),
        (["cola, rte", "bible"], ("cola", "rte", "bible")),
        ("cola", ("cola",)),
        ((), ()),
        ("", ()),
        ("imdb,rte", ("imdb", "rte")),
        ("file:train=a.tsv,dev=b.tsv;labels=no,yes", ("file:train=a.tsv,dev=b.tsv;labels=no,yes",)),
        (
            "cola,file:train=a,dev=b;name=x,rte,pairs:train=c,dev=d,file:train=e,dev=f",
            (
                "cola",
                "file:train=a,dev=b;name=x",
                "rte",
                "pairs:train=c,dev=d",
                "file:train=e,dev=f",
            ),
        ),
    ],
)
def test_lists_of_tasks(value, names):
    assert data.task_names(value) == names
    assert data.task_names(names) == names


FILES = "file:train=a.tsv,dev=b.tsv"
PAIRS = "pairs:train=a.tsv,dev=b.tsv"


@pytest.mark.parametrize(
    ("value", "names"),
    [
        # Classes may be called as tasks are; another entry, or an option of one value, ends them.
        (f"{FILES};labels=cola,rte", (f"{FILES};labels=cola,rte",)),
        (f"rte,{FILES};labels=cola,rte", ("rte", f"{FILES};labels=cola,rte")),
        ((f"{FILES};labels=no,yes", "rte"), (f"{FILES};labels=no,yes", "rte")),
        (f"{FILES};labels=no,yes;name=x,rte", (f"{FILES};labels=no,yes;name=x", "rte")),
        (
            f"{FILES}; labels = a, rte ; name=x , cola",
            (f"{FILES}; labels = a, rte ; name=x", "cola"),
        ),
        (f"{FILES};labels=no,rte,{PAIRS},cola", (f"{FILES};labels=no,rte", PAIRS, "cola")),
        (f"{PAIRS};prefix=so, rte,{FILES}", (f"{PAIRS};prefix=so, rte", FILES)),
        (f"{FILES};metric=f1,accuracy,rte,sst2", (f"{FILES};metric=f1,accuracy", "rte", "sst2")),
        (f"{FILES};metric=f1,acuracy", (f"{FILES};metric=f1,acuracy",)),
        # What is no split does not belong to an entry.
        (("file:train=a.tsv", "typo"), ("file:train=a.tsv", "typo")),
        ("file:train=a.tsv,typo", ("file:train=a.tsv", "typo")),
        (f"{FILES};name=x,typo,rte", (f"{FILES};name=x", "typo", "rte")),
        (f"{FILES},test=c.tsv,bible", (f"{FILES},test=c.tsv", "bible")),
        (f" {FILES} , rte,, ", (FILES, "rte")),
        (
            "file:train=a.tsv, dev=b.tsv;kind=regression",
            ("file:train=a.tsv, dev=b.tsv;kind=regression",),
        ),
        ((FILES, "dev=c.tsv"), (FILES, "dev=c.tsv")),
    ],
)
def test_lists_with_files_and_options(value, names):
    assert data.task_names(value) == names
    assert data.task_names(names) == names


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("mnil", "mnli"), ("RTE", "rte"), ("sst-2", "sst2"), ("bibel", "bible"), ("stsB", "stsb")],
)
def test_mistyped_tasks_get_the_nearest_name(name, nearest):
    with pytest.raises(ValueError, match=rf"unknown task '{name}'; .*, did you mean '{nearest}'\?"):
        data.load_text_to_text(name)
    with pytest.raises(ValueError, match=r"unknown task 'imdb'; [^?]*$"):
        data.check_task("imdb")
