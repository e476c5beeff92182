"""Corpus folders: the same bytes whatever the workers, resumable, checked."""

import dataclasses
import itertools
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from mpojax import data, files
from mpojax.data import pipeline
from mpojax.data.corpus import building
from mpojax.data.corpus import corpus as corpus_lib
from mpojax.data.corpus import shards as corpus_shards
from mpojax.data.text import documents as text_documents
from tests.data import corpora

SETTINGS = building.CorpusSettings(vocab_size=120, valid=0.2, shards=4, max_tokens=64)


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return corpora.write_text(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def made(text, tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "corpus"
    building.build(text, folder, SETTINGS)
    return folder


@pytest.fixture
def copy(made, tmp_path):
    return pathlib.Path(shutil.copytree(made, tmp_path / "copy"))


def test_same_bytes_whatever_the_workers(text, made, tmp_path):
    seen = []
    building.build(
        text, tmp_path / "out", SETTINGS, workers=3, advance=lambda *told: seen.append(told)
    )
    assert contents(tmp_path / "out") == contents(made)
    assert list(dict.fromkeys(what for what, _, _ in seen)) == [
        "reading",
        "vocabulary",
        "tokenising",
    ]
    assert all(0 <= done <= total for _, done, total in seen)


def test_another_text_of_the_same_lengths_is_other_data(tmp_path):
    documents = [([5, 6, 7], [0]), ([8, 9], [0])]
    one = corpora.from_tokens(tmp_path / "one", documents, 12)
    same = corpora.from_tokens(tmp_path / "same", documents, 12)
    other = corpora.from_tokens(tmp_path / "other", [([5, 6, 7], [0]), ([9, 8], [0])], 12)
    np.testing.assert_array_equal(one.lengths("train"), other.lengths("train"))
    assert one.fingerprint("train") == same.fingerprint("train") != other.fingerprint("train")
    for shard in one.shards("train"):
        assert shard.sha256 == files.sha256(one.folder / shard.file)


def test_a_corpus_without_digests_is_read_as_before(tmp_path):
    corpus = corpora.from_tokens(tmp_path, [([5, 6, 7], [0]), ([8, 9], [0])], 12)
    path = tmp_path / "corpus.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    for shard in content["splits"]["train"]["shards"]:
        del shard["sha256"]
    path.write_text(json.dumps(content), encoding="utf-8")
    older = data.Corpus(tmp_path)
    assert [shard.sha256 for shard in older.shards("train")] == ["", ""]
    # What a run that was begun with it has noted.
    entry = [12, *content["splits"]["train"]["shards"]]
    arrays = {"entry": np.array(json.dumps(entry)), "lengths": older.lengths("train")}
    noted = pipeline.fingerprint(arrays)
    assert older.fingerprint("train") == noted != corpus.fingerprint("train")
    content["splits"]["train"]["shards"][0]["sha256"] = "abc"
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ValueError, match="sha256='abc' must be 64 hexadecimal digits"):
        data.Corpus(tmp_path)


def test_records_are_the_text(text, made):
    corpus = data.Corpus(made)
    tokenizer = corpus.tokenizer()
    found = {split: [] for split in corpus.splits}
    for split in corpus.splits:
        documents, _ = corpus.reader(split).gather(np.zeros(0, int))
        bounds = set(documents.starts.tolist())
        assert bounds - {documents.starts[-1]} <= set(documents.sentences.tolist())
        places = [*documents.sentences.tolist(), len(documents.tokens)]
        for start, end in itertools.pairwise(places):
            found[split].append(tokenizer.decode(documents.tokens[start:end]))
        assert np.array_equal(np.diff(documents.starts), corpus.lengths(split))
        assert corpus.lengths(split).max() <= SETTINGS.max_tokens
        assert corpus.count(split) == len(documents.tokens)
    paths = text_documents.find_files(text)
    expected = {"train": [], "valid": []}
    for path in paths:
        content = path.read_text()
        split = "valid" if corpus_shards.document_hash(content) < 0.2 * 2**64 else "train"
        expected[split] += text_documents.split_sentences(content)
    for split, sentences in expected.items():
        plain = [s.lower().replace(".", "").split() for s in sentences]
        assert [s.replace(".", "").split() for s in found[split]] == plain


def test_disk_and_memory_give_the_same_documents(made):
    corpus = data.Corpus(made)
    whole, _ = corpus.reader("train").gather(np.zeros(0, int))
    wanted = np.array([5, 2, 5, 0])
    some, places = corpus.reader("train", memory=0).gather(wanted)
    for number, place in zip(wanted, places, strict=True):
        a = whole.tokens[whole.starts[number] : whole.starts[number + 1]]
        b = some.tokens[some.starts[place] : some.starts[place + 1]]
        assert np.array_equal(a, b)
    assert len(some.starts) == 4


def test_resume_after_an_interrupted_shard(text, made, tmp_path, monkeypatch):
    out = tmp_path / "out"
    written, write = [], corpus_shards.write_split

    def interrupted(folder, name, *rest):
        if name == "valid-00002-of-00004" or len(written) == 3:
            (folder / f"{name}.array_record").write_bytes(b"half of it")
            raise KeyboardInterrupt
        written.append(name)
        return write(folder, name, *rest)

    monkeypatch.setattr(corpus_shards, "write_split", interrupted)
    with pytest.raises(KeyboardInterrupt):
        building.build(text, out, SETTINGS)
    with pytest.raises(FileNotFoundError, match=r"lacks corpus\.json, which is written last"):
        data.Corpus(out)
    first = list(written)
    (out / ".mpojax-0123.tmp.array_record").write_bytes(b"left behind")
    monkeypatch.setattr(corpus_shards, "write_split", lambda *a: written.append(a[1]) or write(*a))
    monkeypatch.setattr(building.vocabulary, "train", lambda *a: pytest.fail("trained again"))
    building.build(text, out, SETTINGS)
    assert contents(out) == contents(made)
    done = {name.partition("-")[2] for name in first} - {written[len(first)].partition("-")[2]}
    assert done  # whole shards were finished before
    assert not done & {name.partition("-")[2] for name in written[len(first) :]}


def test_complete_corpus_is_left_as_it_is(text, copy, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in copy.iterdir()}
    monkeypatch.setattr(corpus_shards, "write_split", lambda *a: pytest.fail("wrote again"))
    building.build(text, copy, SETTINGS)
    assert {path: path.stat().st_mtime_ns for path in copy.iterdir()} == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"valid": 0.1}, r"other settings \(valid: 0.2 there, 0.1 now\)"),
        ({"max_tokens": 32, "shards": 2}, "max_tokens: 64 there, 32 now; shards: 4 there, 2 now"),
        ({"vocab_size": 130}, "vocab_size: 120 there, 130 now"),
    ],
)
@pytest.mark.parametrize("complete", [True, False])
def test_corpus_of_other_settings(text, copy, changes, message, complete):
    if not complete:
        plan = json.loads((copy / "corpus.json").read_text())["settings"]
        (copy / "corpus.json").unlink()
        (copy / "plan.json").write_text(json.dumps(plan))
    before = contents(copy)
    with pytest.raises(ValueError, match=message):
        building.build(text, copy, dataclasses.replace(SETTINGS, **changes))
    assert contents(copy) == before


def test_settings_of_a_run_that_made_nothing_can_be_mended(text, tmp_path):
    wrong = dataclasses.replace(SETTINGS, vocab_size=10)
    with pytest.raises(ValueError, match="vocab_size=10 must be above"):
        building.build(text, tmp_path / "out", wrong)
    building.build(text, tmp_path / "out", SETTINGS)


def test_corpus_of_other_text(text, copy, tmp_path):
    other = shutil.copytree(text, tmp_path / "other")
    next(other.rglob("*.txt")).write_text("Another.")
    with pytest.raises(ValueError, match=r"other settings \(text: "):
        building.build(other, copy, SETTINGS)


def test_folder_that_holds_something_else(text, tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(ValueError, match=r"holds something else \(thesis.tex\)"):
        building.build(text, tmp_path, SETTINGS)
    with pytest.raises(ValueError, match="is a file"):
        building.build(text, tmp_path / "thesis.tex", SETTINGS)


def test_text_that_cannot_be_used(tmp_path):
    def build(**changes):
        settings = dataclasses.replace(SETTINGS, **changes)
        return building.build(tmp_path / "text", tmp_path / "out", settings)

    with pytest.raises(FileNotFoundError, match="no folder"):
        build()
    folder = tmp_path / "text"
    folder.mkdir()
    with pytest.raises(FileNotFoundError, match=r"no \.txt or \.jsonl"):
        build()
    (folder / "a.txt").touch()
    with pytest.raises(FileNotFoundError, match="1 files are empty"):
        build()
    (folder / "a.txt").write_text(" \n")
    with pytest.raises(FileNotFoundError, match="only white space"):
        build()
    (folder / "a.txt").write_text("One document. " * 50)
    with pytest.raises(ValueError, match="nothing can be held out of 1 document"):
        build()
    (folder / "b.txt").write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match=r"b\.txt is not UTF-8: byte 3"):
        build()
    assert not (tmp_path / "out").exists()
    (folder / "b.txt").unlink()
    assert set(build(valid=0.0, vocab_size=40).splits) == {"train"}


@pytest.mark.parametrize("valid", [1e-9, 1 - 1e-9])
def test_both_splits_have_a_document(text, tmp_path, valid):
    settings = dataclasses.replace(SETTINGS, valid=valid, max_tokens=8192)
    corpus = building.build(text, tmp_path / "out", settings)
    few, many = ("valid", "train") if valid < 0.5 else ("train", "valid")
    assert corpus.count(few, "documents") == 1
    assert corpus.count(many, "documents") == 11


def test_held_out_documents_do_not_depend_on_the_others(text, made, tmp_path):
    folder = shutil.copytree(text, tmp_path / "text")
    for path in sorted(folder.rglob("*.txt"))[::2]:
        path.unlink()

    def held_out(folder, out):
        settings = dataclasses.replace(SETTINGS, vocab_size=None, tokenizer=made, max_tokens=8192)
        corpus = building.build(folder, tmp_path / out, settings)
        documents, _ = corpus.reader("valid").gather(np.zeros(0, int))
        parts = np.split(documents.tokens, documents.starts[1:-1])
        return {corpus.tokenizer().decode(part) for part in parts}

    assert held_out(folder, "some") < held_out(text, "all")


def test_own_tokenizer(text, made, tmp_path):
    vocabulary = data.Corpus(made).tokenizer().vocabulary()
    model = tmp_path / "model"
    model.mkdir()
    (model / "vocab.txt").write_text("\n".join(sorted(vocabulary, key=vocabulary.get)) + "\n")
    (model / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    settings = dataclasses.replace(SETTINGS, vocab_size=None, tokenizer=model)
    corpus = building.build(text, tmp_path / "out", settings)
    names = {"vocab.txt", "tokenizer_config.json"}
    assert names <= {path.name for path in corpus.folder.iterdir()}
    own, _ = corpus.reader("train").gather(np.zeros(0, int))
    other, _ = data.Corpus(made).reader("train").gather(np.zeros(0, int))
    assert np.array_equal(own.tokens, other.tokens)
    corpus.check_tokenizer(data.Corpus(made).tokenizer())
    lacking = [token for token in sorted(vocabulary, key=vocabulary.get) if token != "[MASK]"]
    (model / "vocab.txt").write_text("\n".join(lacking) + "\n")
    with pytest.raises(ValueError, match=r"has no mask token; it needs one of \['\[MASK\]'"):
        building.build(text, tmp_path / "again", settings)
    with pytest.raises(ValueError, match=r"another vocabulary: \d+ tokens differ, e\.g\. "):
        corpus.check_tokenizer(data.Tokenizer.from_folder(model))


def test_own_tokenizer_of_a_class_that_config_json_tells(text, made, tmp_path):
    """Cased by its settings, whatever tokenizer.json says, since it is BERT's."""
    lowercase = data.Corpus(made).tokenizer()
    model = tmp_path / "model"
    lowercase.save(model)
    (model / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    (model / "config.json").write_text('{"model_type": "bert"}')
    settings = dataclasses.replace(SETTINGS, vocab_size=None, tokenizer=model)
    corpus = building.build(text, tmp_path / "out", settings)
    source = data.Tokenizer.from_folder(model)
    assert source.encode_plain(["A a"]) != lowercase.encode_plain(["A a"])
    assert corpus.tokenizer().encode_plain(["A a"]) == source.encode_plain(["A a"])
    assert data.Corpus(building.build(text, tmp_path / "out", settings).folder)


def test_own_tokenizer_with_added_tokens(text, made, tmp_path):
    vocabulary = data.Corpus(made).tokenizer().vocabulary()
    model = tmp_path / "model"
    model.mkdir()
    (model / "vocab.txt").write_text("\n".join(sorted(vocabulary, key=vocabulary.get)) + "\n")
    (model / "added_tokens.json").write_text(json.dumps({"<e1>": len(vocabulary)}))
    (model / "special_tokens_map.json").write_text('{"additional_special_tokens": ["<e1>"]}')
    settings = dataclasses.replace(SETTINGS, vocab_size=None, tokenizer=model)
    corpus = building.build(text, tmp_path / "out", settings)
    corpus.check_tokenizer(data.Tokenizer.from_folder(model))
    assert corpus.tokenizer().token_to_id("<e1>") == len(vocabulary)
    assert corpus.vocab_size == len(vocabulary) + 1


def test_model_of_another_vocabulary(made):
    corpus = data.Corpus(made)
    corpus.check_vocab_size(corpus.vocab_size)
    with pytest.raises(
        ValueError, match=rf"vocab_size=30522, the corpus .* with {corpus.vocab_size} tok"
    ):
        corpus.check_vocab_size(30522)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: next(f.glob("train*record")).write_bytes(b"x"), "is 1 bytes long, expected"),
        (lambda f: next(f.glob("valid*record")).unlink(), "split valid is damaged"),
        (lambda f: next(f.glob("*.lengths.npy")).unlink(), "array next to it is missing"),
        (lambda f: (f / "corpus.json").write_text("{"), "not valid JSON"),
        (lambda f: (f / "corpus.json").write_text('{"format": 9}'), "format 9"),
    ],
)
def test_damaged_folders(copy, damage, message):
    damage(copy)
    with pytest.raises(ValueError, match=message):
        data.Corpus(copy)


def test_no_corpus(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no corpus in .*tools/prepare_corpus"):
        data.Corpus(tmp_path)


@pytest.mark.parametrize("vocab_size", [100, 2**16, 2**16 + 1])
def test_record_round_trip(vocab_size):
    tokens, sentences = np.array([7, vocab_size - 1, 0]), np.array([0, 2])
    record = corpus_lib.encode_record(tokens, sentences, vocab_size)
    assert len(record) == 12 + (2 if vocab_size <= 2**16 else 4) * 3
    again = corpus_lib.decode_record(record, vocab_size)
    assert np.array_equal(again[0], tokens)
    assert np.array_equal(again[1], sentences)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "pass one of vocab_size"),
        ({"vocab_size": 9, "tokenizer": "x"}, "pass one of vocab_size"),
        ({"vocab_size": 9, "valid": 1.0}, "valid=1.0"),
        ({"vocab_size": 9, "documents": "page"}, "documents='page'"),
        ({"vocab_size": 9, "max_tokens": 2}, "max_tokens=2"),
        ({"vocab_size": 9, "shards": 0}, "shards=0"),
    ],
)
def test_bad_settings(arguments, message):
    with pytest.raises(ValueError, match=message):
        building.CorpusSettings(**arguments)


def test_no_workers(text, tmp_path):
    with pytest.raises(ValueError, match="workers=0"):
        building.build(text, tmp_path / "out", SETTINGS, workers=0)


@pytest.mark.slow
def test_killed_command_resumes(tmp_path):
    """kill -9 in the middle: no worker stays behind, and the same command finishes the work."""
    text, draw = tmp_path / "text", random.Random(0)
    text.mkdir()
    for number in range(20):
        lines = [corpora.sentence(draw) for _ in range(2500)]
        (text / f"{number}.txt").write_text(" ".join(lines))
    settings = {"--vocab_size": 120, "--shards": 20, "--workers": 2}
    command = [sys.executable, "-m", "tools.prepare_corpus", f"--text={text}"]
    command += [f"{name}={value}" for name, value in settings.items()]
    root = pathlib.Path(__file__).parents[2]
    out = tmp_path / "out"
    process = subprocess.Popen(
        [*command, f"--out={out}"], cwd=root, stderr=subprocess.PIPE, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while not list(out.glob("shard-*.json")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    # Its workers hold the other end of the pipe until they end.
    process.communicate(timeout=30)
    done = {path: path.stat().st_mtime_ns for path in out.glob("*.array_record")}
    assert not (out / "corpus.json").exists()
    subprocess.run([*command, f"--out={out}"], cwd=root, check=True, capture_output=True)
    kept = [path for path, written in done.items() if path.stat().st_mtime_ns == written]
    assert len(kept) >= len(done) - 4  # two running shards, two splits each
    subprocess.run(
        [*command, f"--out={tmp_path / 'o2'}"], cwd=root, check=True, capture_output=True
    )
    assert contents(out) == contents(tmp_path / "o2")


@pytest.mark.slow
def test_messages_of_the_command(tmp_path):
    root = pathlib.Path(__file__).parents[2]
    command = [sys.executable, "-m", "tools.prepare_corpus", f"--text={tmp_path}"]
    run = subprocess.run(
        [*command, f"--out={tmp_path / 'out'}", "--vocab_size=100"],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 2
    assert "error: no text in" in run.stderr
    assert "Traceback" not in run.stderr
