"""Tokenizers, text sets and batches."""

import json
import re

import numpy as np
import pytest

from mpojax import data
from mpojax.data import pipeline
from mpojax.data.text import classification


def arrays(count=23, length=8):
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, length + 1, count)
    mask = (np.arange(length)[None] < lengths[:, None]).astype(np.int32)
    ids = np.arange(count, dtype=np.int32)
    return {"input_ids": ids[:, None] * mask, "attention_mask": mask, "index": ids}


class TestTrainData:
    def test_every_example_once_per_epoch_in_another_order(self):
        batches = data.TrainData(arrays(24), 8, seed=3)
        assert batches.steps_per_epoch == 3
        epochs = [
            np.concatenate([batches[3 * epoch + i]["index"] for i in range(3)])
            for epoch in range(4)
        ]
        for order in epochs:
            assert sorted(order) == list(range(24))
        assert len({tuple(order) for order in epochs}) == 4
        assert not np.array_equal(epochs[0], np.arange(24))

    def test_pure_function_of_seed_and_step(self):
        one, other = (data.TrainData(arrays(), 5, seed=3) for _ in range(2))
        forward = [one[step]["index"] for step in range(20)]
        for step in reversed(range(20)):  # as after a restore: nothing was read before
            np.testing.assert_array_equal(other[step]["index"], forward[step])
        third = data.TrainData(arrays(), 5, seed=4)
        assert not np.array_equal(third[0]["index"], forward[0])

    @pytest.mark.parametrize("lengths", [(), (4,)])
    def test_rows_of_processes_make_the_batch(self, lengths):
        batches = data.TrainData(arrays(), 6, seed=0, lengths=lengths)
        for step in range(6):
            whole = batches[step]
            parts = [batches.rows(step, slice(p * 2, p * 2 + 2)) for p in range(3)]
            for name, array in whole.items():
                np.testing.assert_array_equal(np.concatenate([p[name] for p in parts]), array)

    def test_batch_larger_than_the_data(self):
        batch = data.TrainData(arrays(3), 7, seed=0)[0]
        assert set(batch["index"]) == {0, 1, 2}
        assert len(batch["index"]) == 7

    def test_crop_keeps_every_token(self):
        source = arrays()
        batches = data.TrainData(source, 2, seed=0, lengths=(3, 5, 99))
        seen = set()
        for step in range(30):
            batch = batches[step]
            full = source["attention_mask"][batch["index"]]
            assert batch["attention_mask"].sum() == full.sum()
            assert batch["input_ids"].shape == batch["attention_mask"].shape
            seen.add(batch["input_ids"].shape[1])
        assert seen == {3, 5, 8}

    @pytest.mark.parametrize(
        ("build", "message"),
        [
            (lambda: data.TrainData({}, 2, seed=0), "arrays is empty"),
            (lambda: data.TrainData({"a": np.zeros(0)}, 2, seed=0), "no examples"),
            (lambda: data.TrainData(arrays(), 0, seed=0), "batch_size=0"),
            (
                lambda: data.TrainData({"a": np.zeros(2), "b": np.zeros(3)}, 2, seed=0),
                "equal first dimensions",
            ),
            (
                lambda: data.TrainData({"a": np.zeros((2, 3))}, 2, seed=0, lengths=(2,)),
                "needs an array 'attention_mask'",
            ),
            (lambda: data.TrainData(arrays(), 2, seed=0)[-1], "step=-1"),
        ],
    )
    def test_bad_arguments(self, build, message):
        with pytest.raises(ValueError, match=re.escape(message)):
            build()


class TestEvalData:
    @pytest.mark.parametrize("lengths", [(), (3, 5)])
    @pytest.mark.parametrize("count", [1, 8, 23])
    def test_every_example_exactly_once(self, lengths, count):
        batches = data.EvalData(arrays(count), 8, lengths=lengths)
        seen = []
        for index in range(len(batches)):
            batch = batches[index]
            assert batch["index"].shape == (8,)
            assert batch["example_mask"].dtype == bool
            seen += list(batch["index"][batch["example_mask"]])
        assert sorted(seen) == list(range(count))
        with pytest.raises(IndexError):
            batches[len(batches)]

    def test_order_says_which_example_each_row_is(self):
        batches = data.EvalData(arrays(), 8, lengths=(3, 5))
        rows = [batches[i]["index"][batches[i]["example_mask"]] for i in range(len(batches))]
        np.testing.assert_array_equal(np.concatenate(rows), batches.order)
        assert list(batches.order) != sorted(batches.order)

    def test_left_padding_is_never_cut(self):
        mask = np.array([[0, 0, 0, 1], [0, 0, 1, 1]], np.int32)
        batch = data.EvalData({"attention_mask": mask}, 2, lengths=(1, 2))[0]
        np.testing.assert_array_equal(batch["attention_mask"], mask)


VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "good", "film", "##s", "bad", ",", "."]


@pytest.fixture
def vocab_folder(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    return tmp_path


class TestTokenizer:
    def test_vocab_file(self, vocab_folder):
        tokenizer = data.Tokenizer.from_folder(vocab_folder)
        assert tokenizer.vocab_size == len(VOCABULARY)
        encoded = tokenizer.encode(["A good films.", "zzz"], max_length=8)
        np.testing.assert_array_equal(
            encoded["input_ids"], [[2, 4, 5, 6, 7, 10, 3, 0], [2, 1, 3, 0, 0, 0, 0, 0]]
        )
        np.testing.assert_array_equal(encoded["attention_mask"].sum(1), [7, 3])
        assert all(array.dtype == np.int32 for array in encoded.values())

    def test_pairs_and_truncation(self, vocab_folder):
        tokenizer = data.Tokenizer.from_folder(vocab_folder)
        encoded = tokenizer.encode(["a"], ["good film bad bad bad"], max_length=6)
        np.testing.assert_array_equal(encoded["input_ids"], [[2, 4, 3, 5, 6, 3]])
        np.testing.assert_array_equal(encoded["token_type_ids"], [[0, 0, 0, 1, 1, 1]])

    def test_case_is_kept_when_the_folder_says_so(self, vocab_folder):
        (vocab_folder / "tokenizer_config.json").write_text('{"do_lower_case": false}')
        encoded = data.Tokenizer.from_folder(vocab_folder).encode(["A a"], max_length=4)
        np.testing.assert_array_equal(encoded["input_ids"], [[2, 1, 4, 3]])

    def test_tokenizer_file_is_preferred_and_its_own_lengths_overridden(self, vocab_folder):
        tokenizer = data.Tokenizer.from_folder(vocab_folder)
        backend = tokenizer._backend
        backend.enable_truncation(3)
        backend.enable_padding(length=3)
        backend.save(str(vocab_folder / "tokenizer.json"))
        (vocab_folder / "vocab.txt").write_text("nothing")
        again = data.Tokenizer.from_folder(vocab_folder)
        assert again.encode(["a good film , bad ."], max_length=10)["input_ids"].shape == (1, 10)
        assert again.encode(["a good film , bad ."], max_length=10)["attention_mask"].sum() == 8
        assert again.encode([], max_length=10)["input_ids"].shape == (0, 10)

    def test_vocab_lines_end_at_newlines_only(self, tmp_path):
        words = [*VOCABULARY, "odd\u2028token", "\x85", "last"]
        (tmp_path / "vocab.txt").write_bytes("\r\n".join([*words, ""]).encode())
        tokenizer = data.Tokenizer.from_folder(tmp_path)
        assert [tokenizer.token_to_id(word) for word in words] == list(range(len(words)))
        assert tokenizer.vocab_size == len(words)

    def test_vocab_with_a_token_twice(self, tmp_path):
        (tmp_path / "vocab.txt").write_text("\n".join([*VOCABULARY, "film"]))
        with pytest.raises(ValueError, match=r"vocab.txt holds tokens twice: \['film'\]"):
            data.Tokenizer.from_folder(tmp_path)

    def test_real_model(self, minilm_dir):
        transformers = pytest.importorskip("transformers")
        texts = ["It's a charming, often affecting journey!", "unaffordable naïveté " * 40]
        ours = data.Tokenizer.from_folder(minilm_dir).encode(texts, texts[::-1], max_length=40)
        theirs = transformers.AutoTokenizer.from_pretrained(minilm_dir)(
            texts, texts[::-1], max_length=40, padding="max_length", truncation="longest_first"
        )
        for name in ours:
            np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)

    def test_errors(self, tmp_path, vocab_folder):
        with pytest.raises(FileNotFoundError, match=r"no tokenizer.json and no vocab.txt in"):
            data.Tokenizer.from_folder(tmp_path / "nowhere")
        tokenizer = data.Tokenizer.from_folder(vocab_folder)
        with pytest.raises(ValueError, match=r"not one string"):
            tokenizer.encode("a good film")
        with pytest.raises(ValueError, match=r"max_length=2 leaves no token"):
            tokenizer.encode(["a"], max_length=2)
        with pytest.raises(ValueError, match=r"1 texts but 2 pairs"):
            tokenizer.encode(["a"], ["a", "a"])
        (vocab_folder / "tokenizer.json").write_text("{")
        with pytest.raises(ValueError, match=r"not a readable tokenizer file"):
            data.Tokenizer.from_folder(vocab_folder)
        (vocab_folder / "tokenizer.json").unlink()
        (vocab_folder / "vocab.txt").write_text("a\nb")
        with pytest.raises(ValueError, match=r"lacks the special tokens"):
            data.Tokenizer.from_folder(vocab_folder)


class TestTextSets:
    def test_from_arrays(self):
        task = data.from_arrays(
            "mine", {"train": (["a", "b"], ["no", "yes"]), "dev": (["c"], ["no"])}
        )
        assert task.label_names == ("no", "yes")
        assert task.num_labels == 2
        np.testing.assert_array_equal(task["train"].labels, [0, 1])
        with pytest.raises(ValueError, match=r"no split 'test'; has \['dev', 'train'\]"):
            task["test"]

    def test_take_is_a_fixed_sample_not_the_first_ones(self):
        split = data.Split([str(i) for i in range(1000)], np.arange(1000) // 500)
        sample = split.take(200)
        assert sample.texts == split.take(200).texts
        assert sample.texts == [str(i) for i in sorted(map(int, sample.texts))]
        assert 0.4 < sample.labels.mean() < 0.6
        assert len(split.take(5000)) == 1000

    def test_from_files(self, tmp_path):
        (tmp_path / "train.tsv").write_text('\ufefftext\tlabel\na "quoted\t10\r\nb\t9\n')
        (tmp_path / "dev.csv").write_text('label,text\n9,"with, comma"\n')
        row = {"text": "unicode \u2028 line", "label": 10}
        (tmp_path / "test.jsonl").write_text(json.dumps(row) + "\n")
        names = {"train": "train.tsv", "dev": "dev.csv", "test": "test.jsonl"}
        task = data.from_files("mine", {k: tmp_path / v for k, v in names.items()})
        assert task.label_names == ("9", "10")  # by value
        assert task["train"].texts == ['a "quoted', "b"]
        assert task["dev"].texts == ["with, comma"]
        assert task["test"].texts == ["unicode \u2028 line"]
        np.testing.assert_array_equal(task["train"].labels, [1, 0])

    def test_errors(self, tmp_path):
        (tmp_path / "a.tsv").write_text("text\tlabel\nonly one\n")
        with pytest.raises(ValueError, match=r"a.tsv, line 2: 1 fields, expected 2"):
            data.from_files("mine", {"train": tmp_path / "a.tsv"})
        (tmp_path / "a.tsv").write_text("sentence\tlabel\nx\t1\n")
        with pytest.raises(ValueError, match=r"no column 'text'; columns are \['label', 'sent"):
            data.from_files("mine", {"train": tmp_path / "a.tsv"})
        (tmp_path / "a.xml").write_text("")
        with pytest.raises(ValueError, match=r"unknown kind '.xml'"):
            data.from_files("mine", {"train": tmp_path / "a.xml"})
        with pytest.raises(FileNotFoundError, match="no file"):
            data.from_files("mine", {"train": tmp_path / "b.tsv"})
        with pytest.raises(ValueError, match=r"unknown labels \['2'\]; allowed are"):
            classification.to_classes([2], ("0", "1"))
        with pytest.raises(ValueError, match="equal lengths"):
            data.Split(["a"], np.zeros(2))

    def test_unknown_task(self):
        with pytest.raises(ValueError, match=r"unknown task 'mnil'; allowed are \['cola'"):
            data.load_task("mnil")


def test_only_token_arrays_are_cropped():
    mask = np.array([[1, 1, 0, 0], [1, 0, 0, 0]], np.int32)
    others = {"scores": np.zeros((2, 4), np.float32), "labels": np.zeros(2, np.int32)}
    tokens = dict.fromkeys(("input_ids", "attention_mask", "token_type_ids"), mask)
    batch = pipeline.TrainData(others | tokens, 2, seed=0, lengths=(2,))[0]
    shapes = {name: array.shape for name, array in batch.items()}
    assert shapes == {"scores": (2, 4), "labels": (2,)} | dict.fromkeys(tokens, (2, 2))
    with pytest.raises(ValueError, match=r"input_ids has shape \(2, 3\), attention_mask \(2, 4\)"):
        pipeline.TrainData(
            {"attention_mask": mask, "input_ids": mask[:, :3]}, 2, seed=0, lengths=(2,)
        )


@pytest.mark.parametrize("dtype", [object, [("a", object)]])
def test_arrays_of_objects_have_no_fingerprint(dtype):
    """Their memory holds addresses: equal contents would differ, and changed ones might not."""
    arrays = {"a": np.zeros(2, int), "b": np.zeros(2, dtype)}
    with pytest.raises(ValueError, match=r"array 'b' is of type .*give it a type of fixed size"):
        pipeline.fingerprint(arrays)
    assert pipeline.fingerprint({"b": np.array(["x", "y"])})
