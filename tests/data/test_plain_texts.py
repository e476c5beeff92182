"""Plain text by name: splits, held-out documents, errors that say what is missing."""

import json

import pytest

from mpojax import data
from mpojax.data.text import plain


@pytest.fixture
def folder(tmp_path):
    """41 documents, one of them twice."""
    made = tmp_path / "news"
    made.mkdir()
    for number in range(30):
        (made / f"{number:02d}.txt").write_text(f"text {number}\n")
    (made / "again.txt").write_text("text 3\n")
    lines = [json.dumps({"text": f"line {number}"}) for number in range(10)]
    (made / "more.jsonl").write_text("\n".join(lines))
    return made


def wikitext(root, names, folder="wikitext-2"):
    (root / folder).mkdir()
    for name in names:
        (root / folder / name).write_text(f" \n = {name} = \n \n One <unk> . \n\n Two \n")


class TestFolder:
    def test_whole_documents_are_held_out(self, folder, tmp_path):
        texts = data.load_texts("news", tmp_path, held_out=0.1)
        assert len(texts["dev"]) in (4, 5)  # one document is there twice
        assert len(texts["test"]) in (4, 5)
        assert sum(len(documents) for documents in texts.splits.values()) == 41
        found = [set(texts[split]) for split in plain.SPLITS]
        assert set.union(*found) == {f"text {n}\n" for n in range(30)} | {
            f"line {n}" for n in range(10)
        }
        assert sum(map(len, found)) == 40

    def test_names_and_order_of_files_decide_nothing(self, folder, tmp_path):
        before = data.load_texts(str(folder))
        for path in list(folder.glob("*.txt")):
            path.rename(folder / f"{100 - len(path.read_text())}{path.name[::-1]}.txt")
        after = data.load_texts(str(folder))
        for split in plain.SPLITS:
            assert sorted(before[split]) == sorted(after[split])

    def test_of_few_documents_none_is_held_out(self, tmp_path):
        for name in "abc":
            (tmp_path / f"{name}.txt").write_text(name)
        texts = data.load_texts(str(tmp_path))
        assert texts["train"] == ("a", "b", "c")
        with pytest.raises(
            ValueError, match=r"no split 'dev': 5\.0% of the 3 documents of .* less"
        ):
            texts["dev"]
        with pytest.raises(ValueError, match=r"no split 'valid': no such split; has \['train'\]"):
            texts["valid"]

    def test_nothing_held_out(self, folder):
        assert set(data.load_texts(str(folder), held_out=0).splits) == {"train"}


class TestWikiText:
    @pytest.mark.parametrize("pattern", ["{}.txt", "{}.tokens", "wiki.{}.tokens"])
    def test_files_as_given(self, tmp_path, pattern):
        wikitext(tmp_path, [pattern.format(n) for n in ("train", "valid", "test")])
        for root in (tmp_path, tmp_path / "wikitext-2"):
            texts = data.load_texts("wikitext2", root)
            name = pattern.format("valid")
            assert texts["dev"] == (f" \n = {name} = \n \n One <unk> . \n\n Two \n",)
            assert set(texts.splits) == set(plain.SPLITS)

    def test_train_may_be_absent_until_it_is_used(self, tmp_path, monkeypatch):
        wikitext(tmp_path, ["valid.txt", "test.txt"])
        monkeypatch.chdir(tmp_path)
        texts = data.load_texts("wikitext2")
        assert len(texts["test"]) == 1
        with pytest.raises(ValueError, match=r"no split 'train': no train\.txt or train\.tokens"):
            texts["train"]

    def test_nothing_there(self, tmp_path):
        with pytest.raises(
            FileNotFoundError, match=r"no WikiText-2: no test\.txt .* pass data_dir"
        ):
            data.load_texts("wikitext2", tmp_path)

    def test_real_text(self, data_dir):
        texts = data.load_texts("wikitext2", data_dir)
        words = {split: len(texts[split][0].split()) for split in ("dev", "test")}
        assert words == {"dev": 213886, "test": 241211}


class TestFiles:
    def test_documents(self, tmp_path):
        (tmp_path / "a.txt").write_text("\ufeffone\n\ntwo\n")
        (tmp_path / "b.jsonl").write_text('{"text": "three"}\n{"text": " "}\n{"text": "four"}\n')
        texts = data.load_texts("file:train=a.txt,dev=b.jsonl", tmp_path)
        assert texts.splits == {"train": ("one\n\ntwo\n",), "dev": ("three", "four")}

    @pytest.mark.parametrize(
        ("name", "error", "message"),
        [
            ("file:train=a.txt,train=a.txt", ValueError, "'train' is given twice"),
            ("file:a.txt", ValueError, "'a.txt' is not of the form name=value.*file:train=a.txt"),
            ("file:valid=a.txt", ValueError, "unknown split 'valid'; allowed are"),
            ("file:train=b.txt", FileNotFoundError, r"no file .*b\.txt"),
            ("file:train=empty.txt", ValueError, r"no text in .*empty\.txt"),
            ("file:train=broken.txt", ValueError, r"broken\.txt is not UTF-8"),
            ("nowhere", FileNotFoundError, "no texts 'nowhere': no folder .*allowed are"),
            ("", FileNotFoundError, "no texts ''"),
        ],
    )
    def test_errors(self, tmp_path, name, error, message):
        (tmp_path / "a.txt").write_text("x")
        (tmp_path / "empty.txt").write_text(" \n")
        (tmp_path / "broken.txt").write_bytes(b"caf\xe9")
        with pytest.raises(error, match=message):
            data.load_texts(name, tmp_path)

    def test_share(self, tmp_path):
        with pytest.raises(ValueError, match=r"held_out=0\.5 must be from 0 to below 0\.5"):
            data.load_texts("x", tmp_path, held_out=0.5)

    def test_no_files(self):
        with pytest.raises(FileNotFoundError, match="no file"):
            plain.read_files([])


class TestJoined:
    def test_parts_one_after_another(self, folder, tmp_path):
        (tmp_path / "a.txt").write_text("first")
        few = tmp_path / "few"
        few.mkdir()
        (few / "x.txt").write_text("only")
        texts = data.load_texts("file:train=a.txt + news+few", tmp_path)
        alone = data.load_texts("news", tmp_path)
        assert texts["train"] == ("first", *alone["train"], "only")
        assert texts["dev"] == alone["dev"]

    def test_training_needs_all_parts(self, folder, tmp_path):
        wikitext(tmp_path, ["valid.txt", "test.txt"])
        texts = data.load_texts("news+wikitext2", tmp_path)
        assert len(texts["dev"]) == 1 + len(data.load_texts("news", tmp_path)["dev"])
        with pytest.raises(ValueError, match=r"'train': \['wikitext2'\] have none, and training"):
            texts["train"]

    def test_folder_with_a_plus_in_its_name(self, tmp_path):
        (tmp_path / "a+b").mkdir()
        (tmp_path / "a+b" / "x.txt").write_text("x")
        assert data.load_texts("a+b", tmp_path)["train"] == ("x",)


def test_python_s_documentation_is_always_at_hand():
    texts = data.load_texts("python_docs")
    assert set(texts.splits) == {"train", "dev", "test"}
    assert sum(map(len, texts["train"])) > 200_000
    assert not {*texts["train"]} & {*texts["test"], *texts["dev"]}
    assert data.load_documents("python_docs", "test") == texts["test"]
