"""Pre-training batches: labels of sentence order, masks, pure functions of (seed, step)."""

import itertools
import time

import numpy as np
import pytest

from mpojax import data
from mpojax.data.corpus import masking as masking_lib
from mpojax.data.tokenizers.vocabulary import SpecialTokens
from tests.data import corpora

LENGTHS = [100, 3, 41, 1, 260, 17, 29, 2, 64, 90]
PAD, UNK, CLS, SEP, MASK = range(5)
CONTRACT = {
    "input_ids": np.int32,
    "attention_mask": np.int32,
    "token_type_ids": np.int32,
    "segments": np.int32,
    "mlm_positions": np.int32,
    "mlm_labels": np.int32,
    "mlm_weights": np.float32,
    "sop_positions": np.int32,
    "sop_labels": np.int32,
    "sop_weights": np.float32,
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Documents of consecutive numbers, so that the order of any two tokens is known."""
    return corpora.consecutive(tmp_path_factory.mktemp("corpus"), LENGTHS)


def unmasked(batch):
    """input_ids with the labels put back."""
    ids = batch["input_ids"].copy()
    row, column = np.nonzero(batch["mlm_weights"])
    ids[row, batch["mlm_positions"][row, column]] = batch["mlm_labels"][row, column]
    return ids


def pieces(batch):
    """(row, place of [CLS], tokens of the first part, of the second, token types) of all pieces."""
    ids = unmasked(batch)
    segments = batch.get("segments", batch["attention_mask"])
    for row, (tokens, numbers) in enumerate(zip(ids, segments, strict=True)):
        for segment in range(1, numbers.max() + 1):
            places = np.flatnonzero(numbers == segment)
            assert np.array_equal(places, np.arange(places[0], places[-1] + 1))
            own = tokens[places].tolist()
            assert own[0] == CLS
            assert own[-1] == SEP
            first, _, second = (part := own[1:-1]), None, []
            if SEP in part:
                cut = part.index(SEP)
                first, second = part[:cut], part[cut + 1 :]
            yield row, places[0], first, second, batch["token_type_ids"][row, places].tolist()


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("length", [16, 64])
def test_sentence_order_labels(corpus, pack, length):
    train = data.PretrainData(corpus, 16, length, seed=3, pack=pack)
    labels, ends = [], np.cumsum(LENGTHS) + 10
    for step in range(20):
        batch = train[step]
        found = {}
        for row, place, first, second, types in pieces(batch):
            assert types == [0] * (len(first) + 2) + [1] * (len(second) + bool(second))
            found[row, place] = (first, second)
        weighted = np.nonzero(batch["sop_weights"])
        places = batch["sop_positions"][weighted]
        assert len(places) == sum(bool(second) for _, second in found.values())
        for row, place, label in zip(
            weighted[0], places, batch["sop_labels"][weighted], strict=True
        ):
            first, second = found.pop((row, place))
            whole = second + first if label else first + second
            # In the text's order the numbers are consecutive and of one document.
            assert whole == list(range(whole[0], whole[-1] + 1))
            assert np.searchsorted(ends, whole[0], "right") == np.searchsorted(
                ends, whole[-1], "right"
            )
            labels.append(label)
        assert all(len(first) == 1 for first, _ in found.values())  # a single token has no order
    assert abs(np.mean(labels) - 0.5) < 4 * 0.5 / len(labels) ** 0.5


def test_parts_start_with_a_sentence_where_there_are_several(corpus):
    train = data.PretrainData(corpus, 16, 64, seed=0)
    begins = {10 + int(start) + n for start, n in _sentences(LENGTHS)}
    cuts = set()
    for step in range(20):
        for _, _, first, second, _ in pieces(train[step]):
            if len(first) + len(second) > 7 and second:
                cuts |= {first[0], second[0]}
                assert {first[0], second[0]} <= begins
    assert len(cuts) > 0.9 * len(begins)  # any sentence can come first


def _sentences(lengths):
    for begin, length in zip(np.cumsum([0, *lengths[:-1]]), lengths, strict=True):
        yield from ((begin, n) for n in range(0, length, 7))


@pytest.mark.parametrize("sop", [True, False])
@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("whole_sentences", [True, False])
def test_every_token_once_per_epoch(corpus, sop, pack, whole_sentences):
    options = {"sop": sop, "pack": pack, "whole_sentences": whole_sentences, "max_segments": 3}
    every = list(range(10, 10 + sum(LENGTHS)))
    evaluation = data.PretrainEvalData(corpus, 4, 32, split="train", **options)
    seen = []
    for batch in evaluation:
        real = {name: array[batch["example_mask"]] for name, array in batch.items()}
        for _, _, first, second, _ in pieces(real):
            seen += first + second
    assert sorted(seen) == every
    train = data.PretrainData(corpus, evaluation.num_examples, 32, seed=1, **options)
    for epoch in (0, 3):
        parts = [first + second for _, _, first, second, _ in pieces(train[epoch])]
        assert sorted(itertools.chain(*parts)) == every


def test_contract(corpus):
    batch = data.PretrainData(corpus, 6, 32, seed=0, max_segments=3)[0]
    assert {name: array.dtype for name, array in batch.items()} == CONTRACT
    shapes = {"mlm": (6, 5), "sop": (6, 3)}  # 0.15 · 32 = 4.8
    for name, array in batch.items():
        assert array.shape == shapes.get(name[:3], (6, 32)), name
    assert np.array_equal(batch["attention_mask"], batch["segments"] > 0)
    assert np.array_equal(batch["attention_mask"] == 0, unmasked(batch) == PAD)
    plain = data.PretrainData(corpus, 6, 32, seed=0, pack=False, sop=False)[0]
    assert set(plain) == {n for n in CONTRACT if n != "segments" and not n.startswith("sop")}
    assert data.PretrainData(corpus, 6, 32, seed=0, pack=False)[0]["sop_labels"].shape == (6, 1)


def test_batches_are_a_function_of_seed_and_step(corpus):
    def equal(a, b):
        return all(np.array_equal(a[name], b[name]) for name in a)

    train = data.PretrainData(corpus, 8, 32, seed=5)
    batches = [train[step] for step in range(6)]
    again = data.PretrainData(corpus, 8, 32, seed=5, memory=0)  # read from disk, out of order
    assert all(equal(again[step], batches[step]) for step in (4, 0, 5, 1))
    assert not equal(data.PretrainData(corpus, 8, 32, seed=6)[0], batches[0])
    assert not equal(batches[0], batches[1])
    halves = data.PretrainData(corpus, 4, 32, seed=5)
    joined = {k: np.concatenate([halves[2][k], halves[3][k]]) for k in batches[0]}
    assert equal(joined, batches[1])


@pytest.mark.parametrize("make", [data.PretrainData, data.PretrainEvalData])
def test_processes_make_their_rows_alone(corpus, make):
    every = make(corpus, 12, 32, seed=1, split="train")
    whole = every[1]
    for parts in (2, 3, 12):
        size = 12 // parts
        own = [make(corpus, 12, 32, seed=1, split="train", memory=0) for _ in range(parts)]
        rows = [d.rows(1, slice(n * size, (n + 1) * size)) for n, d in enumerate(own)]
        for name, array in whole.items():
            assert np.array_equal(array, np.concatenate([r[name] for r in rows])), name
    chosen = every.rows(1, np.array([7, 2]))
    assert np.array_equal(chosen["input_ids"], whole["input_ids"][[7, 2]])


def test_only_the_own_rows_are_read(corpus, monkeypatch):
    train = data.PretrainData(corpus, 12, 32, seed=1, memory=0)
    asked = []
    reader = train._rows._reader
    gather = reader.gather
    monkeypatch.setattr(reader, "gather", lambda d: asked.append(len(d)) or gather(d))
    segments = train.rows(0, slice(3, 5))["segments"]
    assert asked == [segments.max(1).sum()]


def test_epochs_differ(corpus):
    rows = data.PretrainEvalData(corpus, 1, 32, split="train").num_examples
    train = data.PretrainData(corpus, rows, 32, seed=0)
    first, second = unmasked(train[0]), unmasked(train[1])
    assert train.steps_per_epoch == 1
    assert not np.array_equal(first, second)
    ids = [np.sort(np.sort(batch["input_ids"], axis=1), axis=0) for batch in (train[0], train[1])]
    assert not np.array_equal(*ids)  # other masks, not only another order


def test_evaluation_is_the_same_every_time(corpus):
    evaluation = data.PretrainEvalData(corpus, 8, 32, split="train", seed=2)
    assert len(evaluation) == -(-evaluation.num_examples // 8)
    last = evaluation[len(evaluation) - 1]
    assert last["example_mask"].sum() == evaluation.num_examples - 8 * (len(evaluation) - 1)
    assert last["input_ids"].shape == (8, 32)
    assert np.array_equal(evaluation.order, np.arange(evaluation.num_examples))
    again = data.PretrainEvalData(corpus, 4, 32, split="train", seed=2)
    assert np.array_equal(again[1]["input_ids"], evaluation[0]["input_ids"][4:])
    with pytest.raises(IndexError, match="batch 99"):
        evaluation[99]


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """A third of the tokens, those of number 3 k + 2, continue a word."""
    return corpora.consecutive(tmp_path_factory.mktemp("words"), [5000], continuations=True)


def test_whole_words_stay_whole(words):
    train = data.PretrainData(words, 16, 128, seed=0)
    for step in range(10):
        batch, ids = train[step], unmasked(train[step])
        for row in range(16):
            chosen = set(batch["mlm_positions"][row][batch["mlm_weights"][row] > 0].tolist())
            for place in range(128):
                if ids[row, place] % 3 == 2 and ids[row, place - 1] > MASK:
                    assert (place in chosen) == (place - 1 in chosen)


def test_single_tokens_may_split_words(words):
    masking = data.Masking(whole_words=False)
    batch = data.PretrainData(words, 64, 128, seed=0, masking=masking)[0]
    split = 0
    for row, chosen in enumerate(batch["mlm_positions"]):
        ids = unmasked(batch)[row]
        split += sum(
            ids[p] % 3 == 2 and ids[p - 1] > MASK and p - 1 not in chosen for p in chosen[1:]
        )
    assert split > 100


@pytest.mark.parametrize("whole_words", [True, False])
def test_masking_statistics(words, whole_words):
    masking = data.Masking(whole_words=whole_words)
    train = data.PretrainData(words, 256, 128, seed=7, masking=masking)
    chosen = masked = kept = real = 0
    sampled, counts = [], np.zeros(128)
    for step in range(4):
        batch = train[step]
        row, column = np.nonzero(batch["mlm_weights"])
        place = batch["mlm_positions"][row, column]
        inputs, labels = batch["input_ids"][row, place], batch["mlm_labels"][row, column]
        assert labels.min() > MASK  # never a special token or padding
        chosen, masked = chosen + len(row), masked + (inputs == MASK).sum()
        kept += (inputs == labels).sum()
        sampled.append(inputs[(inputs != MASK) & (inputs != labels)])
        real += (unmasked(batch) > MASK).sum()
        counts += np.bincount(place, minlength=128)
        # Nothing else was touched.
        others = np.ones((256, 128), bool)
        others[row, place] = False
        assert np.array_equal(batch["input_ids"][others], unmasked(batch)[others])
    assert abs(chosen / real - 0.15) < 0.003
    assert abs(masked / chosen - 0.8) < 0.01
    assert abs(kept / chosen - 0.1) < 0.01
    sampled = np.concatenate(sampled)
    assert sampled.min() > MASK
    # Drawn evenly from all ordinary tokens: both halves of the vocabulary as often.
    assert abs((sampled < words.vocab_size // 2).mean() - 0.5) < 0.04
    inner = counts[2:100]
    assert inner.std() / inner.mean() < 0.15  # all places as often


def test_predictions_can_be_limited(corpus):
    masking = data.Masking(rate=0.3, max_predictions=4)
    batch = data.PretrainData(corpus, 8, 64, seed=0, masking=masking)[0]
    assert batch["mlm_positions"].shape == (8, 4)
    assert batch["mlm_weights"].sum(1).max() == 4
    assert data.Masking().predictions(128) == 20
    assert data.Masking().predictions(100) == 15
    assert data.Masking().predictions(512) == 77


def test_unknown_words_are_not_masked(tmp_path):
    corpus = corpora.from_tokens(tmp_path, [([UNK, 9] * 40, [0])], 12)
    batch = data.PretrainData(corpus, 8, 32, seed=0)[0]
    assert set(batch["mlm_labels"][batch["mlm_weights"] > 0].tolist()) == {9}
    only = corpora.from_tokens(tmp_path / "only", [([UNK] * 40, [0])], 12)
    assert data.PretrainData(only, 8, 32, seed=0)[0]["mlm_weights"].sum() == 0


def test_random_numbers_are_even_and_independent():
    rows = np.arange(400)[:, None]
    random = masking_lib.Randomness(3, np.arange(400))
    u = random.uniform(0, np.arange(500)[None], rows)
    assert abs(u.mean() - 0.5) < 0.003
    assert abs(u.var() - 1 / 12) < 0.002
    for other in (
        random.uniform(1, np.arange(500)[None], rows),
        masking_lib.Randomness(4, np.arange(400)).uniform(0, np.arange(500)[None], rows),
        np.roll(u, 1, axis=0),
        np.roll(u, 1, axis=1),
    ):
        assert abs(np.corrcoef(u.ravel(), other.ravel())[0, 1]) < 0.01
    alone = masking_lib.Randomness(3, np.array([17])).uniform(0, np.arange(500), np.zeros(500, int))
    assert np.array_equal(alone, u[17])


def test_a_batch_takes_milliseconds(tmp_path):
    tokens = np.random.default_rng(0).integers(5, 8000, 400_000).tolist()
    documents = [(tokens[a : a + 8000], list(range(0, 8000, 25))) for a in range(0, 400_000, 8000)]
    corpus = corpora.from_tokens(tmp_path, documents, 8000, continuations=True)
    train = data.PretrainData(corpus, 64, 128, seed=0)
    train[0]
    times = []
    for step in range(20):
        start = time.perf_counter()
        train[step]
        times.append(time.perf_counter() - start)
    assert min(times) < 0.015


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda c: data.PretrainData(c, 0, seed=0), "batch_size=0"),
        (lambda c: data.PretrainData(c, 4, 3, seed=0), "length=3"),
        (
            lambda c: data.PretrainData(c, 4, seed=0, split="test"),
            r"no split 'test'",
        ),
        (lambda c: data.PretrainEvalData(c, 4), "no split 'valid'"),
        (lambda c: data.PretrainData(c, 4, seed=0)[-1], "step=-1"),
        (lambda c: data.Masking(rate=1.5), "rate=1.5"),
        (lambda c: data.Masking(mask_share=0.8, random_share=0.3), "random_share=0.3"),
        (lambda c: data.Masking(max_predictions=0), "max_predictions=0"),
    ],
)
def test_settings_that_make_no_sense(corpus, make, message):
    with pytest.raises(ValueError, match=message):
        make(corpus)


def test_special_tokens_by_role():
    named = {"<pad>": 0, "<unk>": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4, "a": 5}
    assert SpecialTokens.of(named, "x") == SpecialTokens(0, 1, 2, 3, 4)
