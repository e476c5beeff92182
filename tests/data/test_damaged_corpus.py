"""Damaged and hostile files of a corpus: each opens, or is one clear error, in bounded time."""

import json
import pickle

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from mpojax import data
from tests import damaged
from tests.data import corpora

DOCUMENTS = [([5, 6, 7, 8], [0, 2]), ([9, 5], [0]), ([6, 7, 8], [0])]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """(folder, {file: content})."""
    folder = tmp_path_factory.mktemp("corpus")
    corpora.from_tokens(folder, DOCUMENTS, 12)
    return folder, {path.name: path.read_bytes() for path in folder.iterdir()}


def read(folder):
    """Everything that training reads but the records."""
    opened = data.Corpus(folder)
    return [opened.lengths(split).sum() + opened.sentences(split).sum() for split in opened.splits]


@hypothesis.settings(
    max_examples=40, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture]
)
@hypothesis.given(draw=st.data())
def test_corpus_json(corpus, draw):
    folder, contents = corpus
    content = json.loads(contents["corpus.json"])
    names = ["vocab_size", "splits", "special_tokens", "more"]
    changed = draw.draw(damaged.contents(content, names))
    (folder / "corpus.json").write_text(json.dumps(changed), encoding="utf-8")
    damaged.load_or_clear_error(lambda: read(folder))
    (folder / "corpus.json").write_bytes(contents["corpus.json"])


@pytest.mark.parametrize("what", ["lengths", "sentences"])
@hypothesis.settings(
    max_examples=40, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture]
)
@hypothesis.given(draw=st.data())
def test_arrays(corpus, what, draw):
    folder, contents = corpus
    name = next(name for name in contents if name.endswith(f"{what}.npy"))
    (folder / name).write_bytes(draw.draw(damaged.raw(contents[name], 128)))
    damaged.load_or_clear_error(lambda: read(folder))
    (folder / name).write_bytes(contents[name])


def test_what_is_wrong_is_named(corpus, tmp_path):
    folder, contents = corpus
    name = next(name for name in contents if name.endswith("lengths.npy"))
    header = b"\x93NUMPY\x01\x00v\x00{'descr': '<i4', 'fortran_order': False, 'shape': (%d,), }"
    huge = (header % 10**12).ljust(127) + b"\n" + b"\0" * 8
    marker = tmp_path / "marker"

    class Mark:
        def __reduce__(self):
            return marker.touch, ()

    np.save(tmp_path / "objects.npy", np.array([Mark(), 1], object), allow_pickle=True)
    for content, message in (
        (huge, "is damaged"),
        ((tmp_path / "objects.npy").read_bytes(), "is damaged"),
        (pickle.dumps(Mark()), "is damaged"),
        (contents[name][:-4], "is damaged"),
        (b"", "is damaged"),
    ):
        (folder / name).write_bytes(content)
        with pytest.raises(ValueError, match=message):
            read(folder)
    assert not marker.exists()
    (folder / name).write_bytes(contents[name])
    assert read(folder)
