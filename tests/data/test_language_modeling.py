"""Streams and blocks of language models: by hand, every token once, pure functions of the step."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from mpojax import data
from mpojax.data.text import language_modeling


def stream(count, words=7):
    """Tokens that are their own places."""
    return data.TokenStream(np.arange(count), words)


@pytest.fixture(scope="module")
def tokenizer():
    return data.train_bpe(["one two three\n"] * 3, 262)


class TestTokenStream:
    def test_documents_joined_by_the_end_of_text(self, tokenizer):
        documents = ["one two ", "<eos>\n three"]
        made = data.TokenStream.from_documents(documents, tokenizer)
        first, second = tokenizer.encode_plain(documents)
        np.testing.assert_array_equal(made.tokens, [*first, tokenizer.eos_id, *second])
        assert made.tokens.dtype == np.int32
        assert (len(made), made.num_words, made.num_documents) == (len(made.tokens), 4, 2)
        assert list(made.tokens).count(tokenizer.eos_id) == 1

    def test_one_document_as_it_is(self, tokenizer):
        made = data.TokenStream.from_documents([" \n one <unk> \n"], tokenizer)
        assert tokenizer.decode(made.tokens) == " \n one <unk> \n"
        assert made.num_words == 2

    def test_groups_change_nothing(self, tokenizer, monkeypatch):
        documents = [f"text {number} one" for number in range(20)]
        whole = data.TokenStream.from_documents(documents, tokenizer)
        monkeypatch.setattr(language_modeling, "_GROUP", 30)
        grouped = data.TokenStream.from_documents(documents, tokenizer)
        np.testing.assert_array_equal(whole.tokens, grouped.tokens)

    def test_files(self, tokenizer, tmp_path):
        (tmp_path / "a.txt").write_text("one\n")
        (tmp_path / "b.jsonl").write_text('{"text": "two"}\n{"text": "three"}')
        made = data.TokenStream.from_files([tmp_path / "a.txt", tmp_path / "b.jsonl"], tokenizer)
        same = data.TokenStream.from_documents(["one\n", "two", "three"], tokenizer)
        np.testing.assert_array_equal(made.tokens, same.tokens)
        assert made.name.endswith("b.jsonl")

    def test_errors(self, tokenizer, tmp_path):
        with pytest.raises(ValueError, match="not one string"):
            data.TokenStream.from_documents("one", tokenizer)
        with pytest.raises(ValueError, match=r"brown: no text in 1 document"):
            data.TokenStream.from_documents([""], tokenizer, "brown")
        with pytest.raises(ValueError, match=r"shape \(1, 3\) and type int64"):
            data.TokenStream(np.zeros((1, 3), np.int64), 3)
        with pytest.raises(ValueError, match=r"type float64"):
            data.TokenStream(np.zeros(3), 3)
        (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\na\n")
        bert = data.Tokenizer.from_folder(tmp_path)
        with pytest.raises(ValueError, match="2 documents need an end-of-text token"):
            data.TokenStream.from_documents(["a", "a"], bert)
        assert len(data.TokenStream.from_documents(["a a"], bert)) == 2


class TestTraining:
    def test_batch(self):
        made = data.LanguageModelData(stream(100), 8, 4, seed=0)
        batch = made[3]
        assert {name: (a.shape, a.dtype.name) for name, a in batch.items()} == {
            "input_ids": ((4, 8), "int32"),
            "targets": ((4, 8), "int32"),
            "target_weights": ((4, 8), "float32"),
        }
        np.testing.assert_array_equal(batch["targets"], batch["input_ids"] + 1)
        np.testing.assert_array_equal(np.diff(batch["input_ids"], axis=1), 1)
        assert batch["target_weights"].all()

    def test_sizes(self):
        # 99 targets: 12 whole blocks of 8, one of which is left for the offset.
        made = data.LanguageModelData(stream(100), 8, 4, seed=0)
        assert (made.num_examples, made.num_tokens, made.steps_per_epoch) == (11, 88, 3)
        fixed = data.LanguageModelData(stream(100), 8, 4, seed=0, shift=False)
        assert (fixed.num_examples, fixed.steps_per_epoch) == (12, 3)

    def test_an_epoch_has_disjoint_blocks_from_its_own_offset(self):
        made = data.LanguageModelData(stream(100), 8, 1, seed=5)
        offsets = set()
        for epoch in range(30):
            starts = [int(made[epoch * 11 + place]["input_ids"][0, 0]) for place in range(11)]
            offset = min(starts)
            assert sorted(starts) == list(range(offset, offset + 88, 8))
            assert starts != sorted(starts)
            offsets.add(offset)
        assert min(offsets) >= 0
        assert max(offsets) <= 99 - 88
        assert len(offsets) > 6

    def test_without_shift_blocks_stay(self):
        made = data.LanguageModelData(stream(100), 8, 12, seed=5, shift=False)
        for step in range(3):
            assert sorted(made[step]["input_ids"][:, 0]) == list(range(0, 96, 8))
        assert (made[0]["input_ids"] != made[1]["input_ids"]).any()

    @hypothesis.given(
        step=st.integers(0, 500),
        seed=st.integers(-(2**40), 2**40),
        batch=st.integers(1, 7),
        count=st.integers(9, 60),
    )
    def test_pure_function_of_seed_and_step(self, step, seed, batch, count):
        first = data.LanguageModelData(stream(count), 4, batch, seed=seed)
        again = data.LanguageModelData(stream(count), 4, batch, seed=seed)
        first.rows(step // 2, slice(None))  # what was read before changes nothing
        np.testing.assert_equal(again[step], first[step])
        np.testing.assert_equal(
            np.concatenate(
                [
                    again.rows(step, slice(0, 2))["targets"],
                    again.rows(step, np.arange(batch)[2:])["targets"],
                ]
            ),
            first[step]["targets"],
        )

    def test_batches_of_another_size_hold_the_same_rows(self):
        large = data.LanguageModelData(stream(100), 8, 6, seed=1)
        small = data.LanguageModelData(stream(100), 8, 3, seed=1)
        rows = np.concatenate([small[2 * 7]["input_ids"], small[2 * 7 + 1]["input_ids"]])
        np.testing.assert_array_equal(large[7]["input_ids"], rows)

    def test_seeds_differ(self):
        first, second = (data.LanguageModelData(stream(400), 8, 8, seed=s)[0] for s in (0, 1))
        assert (first["input_ids"] != second["input_ids"]).any()

    def test_the_shortest_stream(self):
        made = data.LanguageModelData(stream(9), 8, 2, seed=0)
        assert made.num_examples == 1
        np.testing.assert_array_equal(made[0]["input_ids"], [np.arange(8)] * 2)


class TestEvaluation:
    def test_disjoint_windows_by_hand(self):
        made = data.LanguageModelEvalData(stream(12), 4, 2)
        assert (len(made), made.num_examples, made.num_tokens, made.num_words) == (2, 3, 11, 7)
        first, second = made[0], made[1]
        np.testing.assert_array_equal(first["input_ids"], [[0, 1, 2, 3], [4, 5, 6, 7]])
        np.testing.assert_array_equal(first["target_weights"], np.ones((2, 4)))
        # The last window ends with the stream: its first target was predicted before.
        np.testing.assert_array_equal(second["targets"], [[8, 9, 10, 11]] * 2)
        np.testing.assert_array_equal(second["target_weights"], [[0, 1, 1, 1], [0, 0, 0, 0]])
        np.testing.assert_array_equal(second["example_mask"], [True, False])

    def test_overlapping_windows_by_hand(self):
        made = data.LanguageModelEvalData(stream(9), 4, 3, stride=2)
        batch = made[0]
        np.testing.assert_array_equal(batch["input_ids"][:, 0], [0, 2, 4])
        np.testing.assert_array_equal(
            batch["target_weights"], [[1, 1, 1, 1], [0, 0, 1, 1], [0, 0, 1, 1]]
        )

    @hypothesis.given(data=st.data(), length=st.integers(2, 9), batch=st.integers(1, 5))
    def test_every_token_but_the_first_once(self, data, length, batch):
        count = data.draw(st.integers(length + 1, 50))
        stride = data.draw(st.integers(1, length))
        made = language_modeling.LanguageModelEvalData(stream(count), length, batch, stride=stride)
        predicted, examples = [], 0
        for index in range(len(made)):
            rows = made[index]
            places = np.nonzero(rows["target_weights"])
            predicted += rows["targets"][places].tolist()
            examples += rows["example_mask"].sum()
            # No token is predicted from less than S - stride tokens, where there are so many.
            context = places[1] + 1
            assert (context >= np.minimum(length - stride + 1, rows["targets"][places])).all()
        assert sorted(predicted) == list(range(1, count))
        assert examples == made.num_examples == len(made.order)

    def test_rows_are_those_of_the_whole_batch(self):
        made = data.LanguageModelEvalData(stream(50), 4, 4, stride=3)
        for index in range(len(made)):
            for rows in (slice(1, 3), np.array([3, 0])):
                part, whole = made.rows(index, rows), made[index]
                np.testing.assert_equal(part, {name: a[rows] for name, a in whole.items()})

    def test_index(self):
        with pytest.raises(IndexError, match="batch 3 of 3"):
            data.LanguageModelEvalData(stream(12), 4, 1)[3]


@pytest.mark.parametrize("kind", ["train", "eval"])
def test_errors(kind):
    def make(count=20, length=4, batch=2, **settings):
        if kind == "train":
            return data.LanguageModelData(stream(count), length, batch, seed=0)
        return data.LanguageModelEvalData(stream(count), length, batch, **settings)

    with pytest.raises(ValueError, match="length=1 must be an integer of at least 2"):
        make(length=1)
    with pytest.raises(
        ValueError, match=r"length=20 needs blocks of 21 tokens, but stream has onl"
    ):
        make(length=20)
    with pytest.raises(ValueError, match="batch_size=0 must be an integer of at least 1"):
        make(batch=0)
    if kind == "train":
        with pytest.raises(ValueError, match="step=-1 must not be negative"):
            make()[-1]
    else:
        for stride in (0, 5):
            with pytest.raises(ValueError, match=f"stride={stride} must be an integer from 1 to 4"):
                make(stride=stride)


class TestContinuations:
    def test_by_hand(self):
        prompts, following = language_modeling.continuations(stream(21), 3, 2, 4)
        np.testing.assert_array_equal(prompts, [[0, 1, 2], [5, 6, 7], [10, 11, 12], [15, 16, 17]])
        np.testing.assert_array_equal(following, [[3, 4], [8, 9], [13, 14], [18, 19]])

    def test_no_more_than_fit(self):
        prompts, following = language_modeling.continuations(stream(14), 3, 2, 100)
        np.testing.assert_array_equal(prompts[:, 0], [0, 7])
        assert following.shape == (2, 2)

    def test_errors(self):
        with pytest.raises(ValueError, match="count=0 must be an integer of at least 1"):
            language_modeling.continuations(stream(9), 3, 2, 0)
        with pytest.raises(ValueError, match="need 10 tokens; stream has 9"):
            language_modeling.continuations(stream(9), 5, 5, 1)
