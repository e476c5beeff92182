"""TSV files with quoted fields: read as csv.writer wrote them, plain files untouched."""

import csv
import io

import hypothesis
import pytest
from hypothesis import strategies as st

from mpojax import data
from mpojax.data.sources import readers

# No carriage return: in plain files a stray one is text, with quoting it ends a line.
TEXTS = st.text(st.sampled_from('ab "\t\n,\u2028é'), min_size=1, max_size=8)
ROWS = st.lists(st.tuples(TEXTS, st.sampled_from(("no", "yes"))), min_size=1, max_size=4)


def quoted(rows, **dialect):
    out = io.StringIO()
    csv.writer(out, delimiter="\t", lineterminator="\n", **dialect).writerows(rows)
    return out.getvalue()


def load(folder, content, options=""):
    (folder / "a.tsv").write_text(content, encoding="utf-8")
    return data.load_task(f"file:train=a.tsv;dev=train{options}", folder)["train"].texts


@pytest.mark.parametrize("text", ['said "never" and left', "tab\tinside", "two\nlines", '"whole"'])
@pytest.mark.parametrize("quotes", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
def test_files_of_csv_writers(tmp_path, text, quotes):
    rows = [("text", "label"), ("plain", "no"), (text, "yes")]
    assert load(tmp_path, quoted(rows, quoting=quotes)) == ["plain", text]


@pytest.mark.parametrize(
    "text",
    ['A "b', '"begins', 'ends"', 'a "word" inside', "''", '"', '""', 'said ""twice""'],
)
def test_quotes_of_plain_files_are_text(tmp_path, text):
    assert load(tmp_path, f'text\tlabel\nplain\tno\n{text}\tyes\n"a" b\tno\n')[1] == text


def test_a_field_in_quotes_alone_is_text_with_a_warning(tmp_path, caplog):
    content = 'text\tlabel\n"never again"\tyes\n'
    with caplog.at_level("WARNING"):
        assert load(tmp_path, content) == ['"never again"']
    assert "add ;quoting=on to the task" in caplog.text
    assert load(tmp_path, content, ";quoting=on") == ["never again"]


def test_quoting_can_be_switched_off(tmp_path):
    content = quoted([("text", "label"), ('a "b" c', "yes")])
    assert load(tmp_path, content, ";quoting=off") == ['"a ""b"" c"']


def test_pairs_of_texts_are_read_alike(tmp_path):
    (tmp_path / "a.tsv").write_text(quoted([("source", "target"), ('a "b"', "c\td")]))
    pairs = data.load_text_to_text("pairs:train=a.tsv,dev=a.tsv", tmp_path)["train"]
    assert (pairs.sources, pairs.targets) == (['a "b"'], ["c\td"])


def test_neither_way_of_reading(tmp_path):
    with pytest.raises(ValueError, match=r"a.tsv, line 2: 3 fields, expected 2"):
        load(tmp_path, 'text\tlabel\n"a\tb\tyes\n')
    with pytest.raises(ValueError, match=r"a.tsv, line 2: not valid TSV with quoting"):
        load(tmp_path, 'text\tlabel\n"a" b\tyes\n', ";quoting=on")
    with pytest.raises(ValueError, match=r"quoting='maybe' must be one of 'off', 'on', 'auto'"):
        load(tmp_path, "text\tlabel\na\tyes\n", ";quoting=maybe")


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ('"hello\t1\na\tb\tc\nd\t0\nworld"\t0\n', 3),  # whole rows between the quotes
        ('"hello\t1\na\tb\tc\nworld"\t0\n', 3),  # at both of them
        ('x\t1\n"hello\nd\t0\nworld"\t0\n', 3),
        ('"hello\t1\tx\nd\t0\nworld"\t0\n', 2),
    ],
)
def test_quotes_that_end_in_a_later_sentence_join_no_rows(tmp_path, caplog, content, line):
    content = f"text\tlabel\n{content}"
    with pytest.raises(ValueError, match=rf"a.tsv, line {line}: \d fields, expected 2"):
        load(tmp_path, content)
    if line == 3:
        assert "add ;quoting=on to the task" in caplog.text
        assert load(tmp_path, content, ";quoting=on")[-1].startswith("hello")


@pytest.mark.parametrize("columns", [("text", "label"), ("label", "text")])
def test_fields_of_several_lines_and_tabs(tmp_path, caplog, columns):
    rows = [("one\ntwo\n\nthree", "no"), ("tab\tinside", "yes"), ("a\tb\tc\nd", "no")]
    content = quoted([columns, *(row[:: 1 if columns[0] == "text" else -1] for row in rows)])
    with caplog.at_level("INFO"):
        assert load(tmp_path, content) == [text for text, _ in rows]
    assert "a.tsv: read with quoting" in caplog.text


@hypothesis.given(rows=ROWS)
@hypothesis.settings(
    deadline=None, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture]
)
def test_whatever_is_written_with_quoting_is_read(tmp_path, rows):
    path = tmp_path / "any.tsv"
    path.write_text(quoted([("text", "label"), *rows], quoting=csv.QUOTE_ALL), encoding="utf-8")
    assert readers.read(path, quoting="auto")["text"] == [text for text, _ in rows]


@hypothesis.given(rows=ROWS)
@hypothesis.settings(
    deadline=None, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture]
)
def test_a_plain_file_is_left_alone_unless_a_csv_writer_would_write_it(tmp_path, rows):
    fields = [[field.translate({9: " ", 10: " "}) for field in row] for row in rows]
    content = "".join("\t".join(row) + "\n" for row in [["text", "label"], *fields])
    path = tmp_path / "plain.tsv"
    path.write_text(content, encoding="utf-8")
    plain, read = (readers.read(path, quoting=how)["text"] for how in ("off", "auto"))
    if read != plain:
        assert quoted([("text", "label"), *zip(read, [row[1] for row in rows], strict=True)]) == (
            content
        )


def test_fields_longer_than_the_limit_of_csv(tmp_path):
    limit, long = csv.field_size_limit(), "x " * 70_000
    (tmp_path / "long.csv").write_text(f"text,label\n{long},a\nshort,b\n")
    assert data.load_task("file:dev=long.csv", tmp_path)["dev"].texts == [long.strip(), "short"]
    assert csv.field_size_limit() == limit
