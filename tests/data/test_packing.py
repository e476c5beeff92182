"""The row index: every token once, no row too long, few gaps."""

import time

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from mpojax.data.corpus import packing

DOCUMENTS = st.lists(st.lists(st.integers(1, 60), min_size=1, max_size=12), min_size=1, max_size=25)


@st.composite
def cases(draw):
    documents = draw(DOCUMENTS)  # the lengths of their sentences
    overhead = draw(st.sampled_from([2, 3]))
    settings = {
        "length": draw(st.integers(overhead + 1, 64)),
        "overhead": overhead,
        "pack": draw(st.booleans()),
        "max_segments": draw(st.integers(1, 5)),
    }
    return documents, draw(st.booleans()), settings


def index_of(documents, whole_sentences, settings):
    lengths = np.array([sum(sentences) for sentences in documents])
    starts = np.concatenate([np.cumsum([0, *sentences[:-1]]) for sentences in documents])
    return packing.build_index(lengths, sentences=starts if whole_sentences else None, **settings)


@hypothesis.given(cases())
def test_every_token_stands_in_exactly_one_row(case):
    documents, whole_sentences, settings = case
    index = index_of(documents, whole_sentences, settings)
    for number, sentences in enumerate(documents):
        own = index.document == number
        spans = sorted(zip(index.start[own], index.size[own], strict=True))
        assert [start for start, _ in spans] == [0, *np.cumsum([size for _, size in spans])[:-1]]
        assert sum(size for _, size in spans) == sum(sentences)
    assert index.offsets[0] == 0
    assert index.offsets[-1] == len(index.size) == len(index.document)


@hypothesis.given(cases())
def test_rows_hold_their_pieces(case):
    documents, whole_sentences, settings = case
    index = index_of(documents, whole_sentences, settings)
    pieces = np.diff(index.offsets)
    used = np.add.reduceat(index.size + settings["overhead"], index.offsets[:-1])
    assert pieces.min() >= 1
    assert pieces.max() <= (settings["max_segments"] if settings["pack"] else 1)
    assert used.max() <= settings["length"]
    assert index.padding_share == pytest.approx(1 - used.sum() / (len(index) * settings["length"]))


@hypothesis.given(cases())
def test_pieces_are_as_long_as_they_can_be(case):
    documents, whole_sentences, settings = case
    index = index_of(documents, whole_sentences, settings)
    capacity = settings["length"] - settings["overhead"]
    for number, sentences in enumerate(documents):
        bounds = set(np.cumsum([0, *sentences]).tolist())
        longest = max(sentences)
        own = index.document == number
        for start, size in zip(index.start[own].tolist(), index.size[own].tolist(), strict=True):
            end = start + size
            if not whole_sentences:
                assert size == capacity or end == sum(sentences)
            elif longest <= capacity:
                assert {start, end} <= bounds
                following = min((b for b in bounds if b > end), default=None)
                assert following is None or following - start > capacity


@hypothesis.given(cases())
def test_no_two_rows_could_be_one(case):
    documents, whole_sentences, settings = case
    index = index_of(documents, whole_sentences, settings)
    if not settings["pack"]:
        return
    used = np.add.reduceat(index.size + settings["overhead"], index.offsets[:-1])
    single = np.sort(used[np.diff(index.offsets) == 1])
    if settings["max_segments"] > 1 and len(single) > 1:
        assert single[0] + single[1] > settings["length"]


def test_best_fit():
    # Of 16: 12 and 4, 9 and 7, 8 and 8; 5 is left.
    lengths = np.array([8, 4, 9, 8, 12, 7, 5]) - 3
    index = packing.build_index(lengths, 16)
    sizes = np.split(index.size + 3, index.offsets[1:-1])
    assert sorted(sorted(row.tolist()) for row in sizes) == [[4, 12], [5], [7, 9], [8, 8]]


def test_a_sentence_longer_than_a_row_is_cut():
    # Sentences of 4, 23 and 3 tokens in rows of 8.
    index = packing.build_index(np.array([30]), 11, sentences=np.array([0, 4, 27]), pack=False)
    assert index.start.tolist() == [0, 4, 12, 20, 27]
    assert index.size.tolist() == [4, 8, 8, 7, 3]


def test_a_million_documents_take_seconds():
    lengths = np.random.default_rng(0).integers(1, 700, 10**6)
    start = time.perf_counter()
    index = packing.build_index(lengths, 512)
    assert time.perf_counter() - start < 20
    assert index.padding_share < 0.01
    assert index.size.sum() == lengths.sum()


@pytest.mark.parametrize(
    ("lengths", "settings", "message"),
    [
        ([5], {"length": 3}, "length=3 must be above the 3 special tokens"),
        ([5], {"length": 8, "max_segments": 0}, "max_segments=0"),
        ([], {"length": 8}, "no document"),
        ([4, 0], {"length": 8}, "without a token"),
    ],
)
def test_settings_that_make_no_rows(lengths, settings, message):
    with pytest.raises(ValueError, match=message):
        packing.build_index(np.array(lengths, int), **settings)


@pytest.mark.parametrize(
    ("sentences", "message"),
    [
        ([0, 2], "one 0 for each of the 2 documents"),
        ([0, 2, 2, 0], "must ascend"),
        ([0, 5, 0], "must ascend"),
        ([1, 0, 0], "must ascend"),
    ],
)
def test_sentences_that_do_not_fit_the_documents(sentences, message):
    with pytest.raises(ValueError, match=message):
        packing.build_index(np.array([4, 3]), 8, sentences=np.array(sentences))
