"""Verse pairs: read as literals out of packages, split by chapter."""

import hashlib
import zipfile

import pytest

from mpojax import data, files
from mpojax.data.sources import bible, packages

MODULE = '''
from pythonbible.bible.bible import Bible

bible = Bible(Version.X, """{text}""", {starts}, {ends}, {{Book.GENESIS: "Genesis"}}, False)
'''


def wheel(path, package, verses):
    text, starts, ends = "", {}, {}
    for number, verse in verses.items():
        starts[number] = len(text)
        text += verse
        ends[number] = len(text)
    with zipfile.ZipFile(path, "w") as archive:
        module = MODULE.format(text=text, starts=starts, ends=ends)
        archive.writestr(f"{package}/{bible._MEMBER}", module)


class TestBible:
    @pytest.fixture
    def cache(self, tmp_path, monkeypatch):
        monkeypatch.setenv("MPOJAX_CACHE", str(tmp_path))
        monkeypatch.setattr(packages, "fetch", lambda *_: pytest.fail("asked the network"))
        old = {
            c * 1000 + v: f" And {c}:{v} [was]  his\n" for c in range(1001, 1200) for v in (1, 2)
        }
        new = {number: f"Then God`s {number}" for number in old}
        new[1001002] += " BOOK I  Psalm 7"
        for place, verses in (("KING_JAMES", old | {9: "only here"}), ("WORLD_ENGLISH", new)):
            known = getattr(bible, place)
            wheel(tmp_path / known.file, known.package.replace("-", "_"), verses)
            digest = hashlib.sha256((tmp_path / known.file).read_bytes()).hexdigest()
            monkeypatch.setattr(bible, place, known._replace(sha256=digest))

    def test_pairs(self, cache):
        task = data.load_text_to_text("bible")
        assert (task.kind, task.metrics) == ("generation", ("bleu",))
        found = {}
        for split, pairs in task.splits.items():
            for source, target in zip(pairs.sources, pairs.targets, strict=True):
                number = int(target.removeprefix("Then God's "))
                assert source == f"bible: And {number // 1000}:{number % 1000} was his"
                assert bible.split_of(number) == split
                found.setdefault(number // 1000, set()).add(split)
        assert len(found) == 199
        assert all(len(splits) == 1 for splits in found.values())
        assert len(task["train"]) > 300 > 50 > len(task["dev"]) > 0
        assert sum(len(pairs) for pairs in task.splits.values()) == 2 * 199 - 1

    def test_unexpected_content(self, tmp_path):
        (tmp_path / "a.whl").write_bytes(b"x")
        with pytest.raises(ValueError, match=r"a\.whl does not hold m\.py with verses"):
            bible.parse(tmp_path / "a.whl", "m.py")
        for content in ("import os", "x = (", "x = f('a', {1: g()}, {1: 2})"):
            with zipfile.ZipFile(tmp_path / "b.whl", "w") as archive:
                archive.writestr("m.py", content)
            with pytest.raises(ValueError, match="does not hold"):
                bible.parse(tmp_path / "b.whl", "m.py")

    def test_the_real_texts(self):
        missing = [
            w.file
            for w in (bible.KING_JAMES, bible.WORLD_ENGLISH)
            if not (files.cache_dir() / w.file).is_file()
        ]
        if missing:
            pytest.skip(f"not in the cache (load_text_to_text('bible') fetches them): {missing}")
        task = data.load_text_to_text("bible")
        sizes = {split: len(pairs) for split, pairs in task.splits.items()}
        assert sizes == {"train": 27804, "dev": 1428, "test": 1717}
        assert task["train"].sources[0] == (
            "bible: In the beginning God created the heaven and the earth."
        )
