"""SQuAD: its files, overlapping windows, and where answers stand in them."""

import itertools
import json
import re

import numpy as np
import pytest

from mpojax import data
from mpojax.data.sources import squad
from tests.data import glue_files

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
QUESTION_WORDS = ["where", "did", "the", "cat", "sit", "was", "night", "warm", "who", "wrote"]
WORDS = [*SPECIAL, *QUESTION_WORDS, "first", "program", "on", "old", "mat", "it", ".", "?"]


@pytest.fixture
def tokenizer(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    return data.Tokenizer.from_folder(tmp_path)


@pytest.fixture
def task(tmp_path):
    glue_files.write_squad(tmp_path)
    return data.load_task("squad", tmp_path)


def test_file(task, tmp_path):
    assert (task.kind, task.num_labels, task.metrics) == ("span", 2, ("f1", "exact_match"))
    assert task.dev_split == "dev"
    split = task["dev"]
    assert split.ids == ["q1", "q2", "q3"]
    assert split.texts[0] == "Where did the cat sit?"
    assert split.pairs[0].startswith("  The cat")  # answers are counted in characters
    assert split.answers[0] == ("on the old mat", "mat")
    assert split.answer_starts[0] == (14, 25)
    spans = [context[slice(*c)] for context, c in zip(split.pairs, split.labels, strict=True)]
    assert spans == ["on the old mat", "Paris", "Ada"]
    assert data.load_task("squad", tmp_path / "squad")["train"].ids == split.ids


def test_take(task):
    sample = task["train"].take(2, seed=1)
    assert isinstance(sample, squad.SpanSplit)
    places = [task["train"].ids.index(name) for name in sample.ids]
    assert len(places) == 2
    for name in ("texts", "pairs", "answers", "answer_starts"):
        expected = [getattr(task["train"], name)[place] for place in places]
        assert getattr(sample, name) == expected
    np.testing.assert_array_equal(sample.labels, task["train"].labels[places])


def test_split_off(task):
    rest, sample = task["train"].split_off(1)
    assert sorted(rest.ids + sample.ids) == ["q1", "q2", "q3"]
    assert (len(rest), len(sample)) == (2, 1)
    with pytest.raises(ValueError, match="cannot split 3 examples off 3"):
        task["train"].split_off(3)


@pytest.mark.parametrize(("max_length", "overlap"), [(40, 5), (14, 2), (12, 0), (12, 2)])
def test_windows(task, tokenizer, max_length, overlap):
    """Every window's tokens, offsets and labels against the whole text."""
    split = task["train"]
    arrays = split.encode(tokenizer, max_length, overlap, max_question_length=6)
    count = len(arrays["example_index"])
    assert {name: (a.shape, a.dtype) for name, a in arrays.items()} == {
        **dict.fromkeys(
            ("input_ids", "attention_mask", "token_type_ids", "context_mask"),
            ((count, max_length), np.int32),
        ),
        "offsets": ((count, max_length, 2), np.int32),
        "example_index": ((count,), np.int32),
        "labels": ((count, 2), np.int32),
    }
    assert list(arrays["example_index"]) == sorted(arrays["example_index"])
    assert (count > 3) == (max_length < 40)
    covered = {number: set() for number in range(3)}
    found = set()
    for row, example in enumerate(arrays["example_index"]):
        context = split.pairs[example]
        inside = np.flatnonzero(arrays["context_mask"][row])
        offsets = arrays["offsets"][row]
        covered[example] |= {tuple(offsets[place]) for place in inside}
        for place in inside:
            word = context[slice(*offsets[place])].lower()
            token = WORDS[arrays["input_ids"][row, place]]
            assert token in (word, "[UNK]")
        start, end = arrays["labels"][row]
        first, last = split.labels[example]
        whole = offsets[inside[0], 0] <= first and offsets[inside[-1], 1] >= last
        if whole:
            assert context[offsets[start, 0] : offsets[end, 1]] == split.answers[example][0]
            found.add(int(example))
        else:
            assert (start, end) == (0, 0)
    for example, tokens in covered.items():  # no token of a context is lost
        joined = "".join(split.pairs[example][slice(*place)] for place in sorted(tokens))
        assert joined == "".join(split.pairs[example].split())
    if max_length >= 14:
        assert found == {0, 1, 2}


def test_neighbouring_windows_share_tokens(task, tokenizer):
    arrays = task["train"].encode(tokenizer, 14, overlap=2, max_question_length=6)
    rows = np.flatnonzero(arrays["example_index"] == 0)
    contexts = [arrays["offsets"][row][arrays["context_mask"][row] == 1].tolist() for row in rows]
    assert len(contexts) > 2
    for left, right in itertools.pairwise(contexts):
        assert left[-2:] == right[:2]


def test_overlap_by_default_is_half_of_the_room(task, tokenizer):
    ours = task["train"].encode(tokenizer, 20)  # the longest question has 6 tokens
    np.testing.assert_array_equal(
        ours["offsets"], task["train"].encode(tokenizer, 20, overlap=(20 - 6 - 3) // 2)["offsets"]
    )
    assert len(ours["labels"]) > 3


def test_long_questions_lose_their_end(task, tokenizer):
    arrays = task["train"].encode(tokenizer, 30, overlap=2, max_question_length=3)
    np.testing.assert_array_equal(
        arrays["input_ids"][0, :6],
        [WORDS.index(w) for w in ["[CLS]", "where", "did", "the", "[SEP]", "the"]],
    )


def test_answers_across_the_border_of_a_window():
    offsets = np.array([[[0, 0], [0, 3], [4, 7], [0, 0]], [[0, 0], [4, 7], [8, 9], [0, 0]]])
    context = np.array([[0, 1, 1, 0], [0, 1, 1, 0]])
    labels = squad.token_spans(offsets, context, np.array([[4, 9], [4, 9]]))
    np.testing.assert_array_equal(labels, [[0, 0], [1, 2]])
    # Part of a token: the whole token is the answer. Unknown answers point to the first token.
    labels = squad.token_spans(offsets, context, np.array([[5, 6], [-1, -1]]))
    np.testing.assert_array_equal(labels, [[2, 2], [0, 0]])


def test_windows_as_transformers_makes_them(minilm_dir, task):
    transformers = pytest.importorskip("transformers")
    split = task["train"]
    contexts = [context * 12 for context in split.pairs]
    ours = data.Tokenizer.from_folder(minilm_dir).encode_windows(split.texts, contexts, 48, 16)
    theirs = transformers.AutoTokenizer.from_pretrained(minilm_dir)(
        split.texts,
        contexts,
        max_length=48,
        stride=16,
        truncation="only_second",
        padding="max_length",
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    names = {"offsets": "offset_mapping", "example_index": "overflow_to_sample_mapping"}
    for name in ("input_ids", "attention_mask", "token_type_ids", "offsets", "example_index"):
        np.testing.assert_array_equal(ours[name], theirs[names.get(name, name)], err_msg=name)


def test_batches_hold_what_the_model_needs_only(task, tokenizer):
    arrays = task["train"].encode(tokenizer, 30, overlap=2)
    for batches in (
        data.TrainData(arrays, 2, seed=0, lengths=(10, 25)),
        data.EvalData(arrays, 2, lengths=(10, 25)),
    ):
        names = {"input_ids", "attention_mask", "token_type_ids", "context_mask", "labels"}
        assert set(batches[0]) - {"example_mask"} == names
        assert batches[0]["context_mask"].shape == batches[0]["input_ids"].shape
    assert set(batches.host_arrays) == {"offsets", "example_index"}


def test_no_room_for_the_context(task, tokenizer):
    with pytest.raises(ValueError, match=r"overlap=128 must be from 0 to below the 31 context tok"):
        task["train"].encode(tokenizer, max_length=40, overlap=128)
    with pytest.raises(ValueError, match=r"overlap=0 must be from 0 to below the 0 context tokens"):
        task["train"].encode(tokenizer, max_length=9, overlap=None)
    with pytest.raises(ValueError, match=r"overlap=-1 must be from 0"):
        task["train"].encode(tokenizer, overlap=-1)


class TestBadFiles:
    def change(self, tmp_path, change, file="dev-v1.1.json"):
        folder = glue_files.write_squad(tmp_path)
        content = glue_files.squad_questions()
        change(content)
        (folder / file).write_text(json.dumps(content))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda c: c.pop("data"), "dev-v1.1.json has not the layout of SQuAD v1.1"),
            (lambda c: c.update(data=[]), "dev-v1.1.json holds no examples"),
            (
                lambda c: c["data"][0]["paragraphs"][1]["qas"][0].update(answers=[]),
                "dev-v1.1.json, question 'q3': no answers; SQuAD v1.1 has one",
            ),
            (
                lambda c: c["data"][0]["paragraphs"][1]["qas"][0]["answers"][0].update(text="Bob"),
                "the answers of 1 questions, e.g. 'q3', do not stand in the context at their",
            ),
        ],
    )
    def test_content(self, tmp_path, change, message):
        self.change(tmp_path, change)
        with pytest.raises(ValueError, match=re.escape(message)):
            data.load_task("squad", tmp_path)

    def test_a_few_misplaced_answers_are_left_without_a_place(self, tmp_path, caplog):
        def many(content):
            paragraph = content["data"][0]["paragraphs"][1]
            question = paragraph["qas"][0]
            paragraph["qas"] = [dict(question, id=f"n{i}") for i in range(150)]
            moved = [{"text": "Ada", "answer_start": 1}]
            paragraph["qas"].append(dict(question, id="moved", answers=moved))

        self.change(tmp_path, many)
        with caplog.at_level("WARNING"):
            split = data.load_task("squad", tmp_path)["dev"]
        assert "answers not at their answer_start: ['moved']" in caplog.text
        np.testing.assert_array_equal(split.labels[-1], [-1, -1])
        assert split.answers[-1] == ("Ada",)

    def test_missing_and_broken(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"no folder .*squad, and no TensorFlow Datase"):
            data.load_task("squad", tmp_path)
        folder = glue_files.write_squad(tmp_path)
        (folder / "train-v1.1.json").write_text("{")
        with pytest.raises(ValueError, match=r"train-v1.1.json is not valid JSON"):
            data.load_task("squad", tmp_path)
        (folder / "train-v1.1.json").write_text("[" * 10**5)
        with pytest.raises(ValueError, match=r"train-v1.1.json is nested too deeply"):
            data.load_task("squad", tmp_path)
        (folder / "train-v1.1.json").unlink()
        with pytest.raises(
            FileNotFoundError, match=r"needs train-v1.1.json; found \['dev-v1.1.jso"
        ):
            data.load_task("squad", tmp_path)
