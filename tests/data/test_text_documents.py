"""Text folders: files in order, documents, sentences, pieces of equal work."""

import json
import pathlib

import hypothesis
import pytest
from hypothesis import strategies as st

from mpojax.data.text import documents as td


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
        ("Mr. Smith met J. R. Brown at U.S. offices. Then left.", None),
        ('"Did he?" she said. "Yes." Off they went.', ['"Did he?" she said.', '"Yes."', None]),
        ("See e.g. the list. It ends", ["See e.g. the list.", "It ends"]),
        ("A heading\nA line\n\n  \nLast", ["A heading", "A line", "Last"]),
        ("It was (so.) Next… And?! End", ["It was (so.)", "Next…", "And?!", "End"]),
        ("3.5 per cent. of 1.000 items", ["3.5 per cent. of 1.000 items"]),
        ("  \n\t", []),
    ],
)
def test_sentences(text, sentences):
    if sentences is None:
        sentences = [text.split(" Then")[0], "Then left."]
    elif sentences and sentences[-1] is None:
        sentences[-1] = "Off they went."
    assert td.split_sentences(text) == sentences


@hypothesis.given(st.text(alphabet="aB.!? \n\"')Mr’1", max_size=80))
def test_sentences_keep_every_character(text):
    assert "".join("".join(td.split_sentences(text)).split()) == "".join(text.split())


def write(folder: pathlib.Path, name: str, content: str | bytes) -> pathlib.Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def read(folder, documents="file", size=2**26):
    pieces = td.cut_files(td.find_files(folder), documents, size)
    return [t for p in pieces for t in td.documents_of(p, td.read_piece(p), documents)]


def test_files_in_order_hidden_ones_left_out(tmp_path):
    for name in ("b.txt", "a/z.txt", "a.jsonl", ".hidden/x.txt", ".x.txt", "notes.md"):
        write(tmp_path, name, "{}")
    found = [path.relative_to(tmp_path).as_posix() for path in td.find_files(tmp_path)]
    assert found == ["a.jsonl", "a/z.txt", "b.txt"]


def test_documents(tmp_path):
    write(tmp_path, "a.txt", "\ufeffone\ntwo\n \nthree\n\n\n\nfour\n")
    write(tmp_path, "b.jsonl", '{"text": "five\\nsix", "id": 1}\n\n{"text": " "}\n{"text": "7"}')
    rest = ["five\nsix", "7"]
    assert read(tmp_path)[0].split() == ["one", "two", "three", "four"]
    assert read(tmp_path)[1:] == rest
    assert [t.strip() for t in read(tmp_path, "paragraph")] == ["one\ntwo", "three", "four", *rest]
    assert read(tmp_path, "line") == ["one", "two", "three", "four", *rest]


@hypothesis.given(
    lines=st.lists(st.text(alphabet="xé ", max_size=9), max_size=30), size=st.integers(1, 60)
)
def test_large_files_are_cut_between_documents(tmp_path_factory, lines, size):
    folder = tmp_path_factory.mktemp("cut")
    write(folder, "a.txt", "\n".join(lines))
    write(folder, "b.jsonl", "\n".join(json.dumps({"text": line}) for line in lines))
    kept = [line for line in lines if line.strip()]
    assert read(folder, "line", size) == kept * 2
    whole, cut = read(folder, "paragraph"), read(folder, "paragraph", size)
    assert [t.strip() for t in whole] == [t.strip() for t in cut]


@hypothesis.given(st.lists(st.integers(1, 50), min_size=1, max_size=30), st.integers(1, 8))
def test_groups_are_runs_of_about_equal_size(sizes, count):
    pieces = [td.Piece(pathlib.Path(str(n)), 0, size) for n, size in enumerate(sizes)]
    groups = td.group_pieces(pieces, count)
    assert len(groups) == count
    assert [piece for group in groups for piece in group] == pieces
    largest = max(sum(piece.end for piece in group) for group in groups)
    assert largest <= sum(sizes) / count + max(sizes)


def test_no_text(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no folder .*missing"):
        td.find_files(tmp_path / "missing")
    write(tmp_path, "a.md", "x")
    with pytest.raises(FileNotFoundError, match=r"no \.txt or \.jsonl file"):
        td.find_files(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"caf\xe9 au lait", r"a\.txt is not UTF-8: byte 3 is 0xe9; convert"),
        ("a.jsonl", '{"text": "x"}\n{"text": ', r"a\.jsonl, line 2 is not valid JSON"),
        ("a.jsonl", "[" * 10**5, r"a\.jsonl, line 1 is nested too deeply"),
        ("a.jsonl", '{"text": ' + "9" * 5000 + "}", r"line 1 is not valid JSON: a number of more"),
        ("a.jsonl", '{"body": "x"}', r'line 1 has no text: expected an object like \{"text"'),
        ("a.jsonl", '["x"]', "line 1 has no text"),
        (
            "a.txt",
            b"version https://git-lfs.github.com/spec/v1\n",
            r"a\.txt is a pointer of Git LF",
        ),
        ("a.jsonl", '{"text": "\\ud800"}', "line 1 has half of a surrogate pair"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, name, content, message):
    write(tmp_path, name, content)
    with pytest.raises(ValueError, match=message):
        read(tmp_path)


def test_a_file_too_large_to_be_one_document(tmp_path, monkeypatch):
    monkeypatch.setattr(td, "_LARGEST_DOCUMENT", 3)
    write(tmp_path, "a.txt", "four")
    with pytest.raises(ValueError, match=r"a\.txt has 4 bytes, too many for one document"):
        read(tmp_path)
    with pytest.raises(ValueError, match="documents='page'"):
        read(tmp_path, "page")
