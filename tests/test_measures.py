"""The measures of the code, on sources whose values are plain to see."""

import ast
import re

from tools import measures

# Per cent of lines; it only goes up.
MIN_COMMENTS = 2.1

SOURCE = '''
"""A module.

    >>> 1
    1
"""


def f(config, x):
    # why
    if x < 0 or (
        x > 9
    ):
        raise ValueError(
            f"x={x} must lie in 0..9"
        )
    assert x  # really
    if x:
        return config.optimizer.name
    return config.steps
'''


def test_guards_comments_reads_and_examples():
    tree = ast.parse(SOURCE)
    assert sorted(measures.guard_lines(tree)) == [11, 12, 13, 14, 15, 16, 17]
    assert measures.count_comments(SOURCE) == 2
    assert sorted(measures.config_reads(tree)) == ["config.optimizer.name", "config.steps"]
    assert [">>>" in text for text in measures.docstrings(tree)] == [True]


def test_public_names_and_words():
    root = measures.ROOT
    code = {
        root / "mpojax" / "a" / "__init__.py": "from mpojax.a.b import used, unused\n",
        root / "mpojax" / "a" / "b.py": "def used(): ...\ndef unused(): ...\n",
        root / "experiments" / "c.py": "used()\n",
    }
    tests = {root / "tests" / "test_a.py": "unused()  # surplus\n"}
    assert measures.public_names(code, code | tests) == ({"used", "unused"}, {"unused"})
    assert list(measures.words_found(tests)) == [(r"\bsurplus\b|\bmisshapen\b", 1, 1)]


def test_the_command(monkeypatch, capsys):
    few = [p for p in measures.tracked(".py", ".md") if p.parent.name == "tools"]
    monkeypatch.setattr(measures, "tracked", lambda *suffixes: few)
    assert measures.main() == 0
    printed = capsys.readouterr().out
    cells = [line.strip("│┃").split("│") for line in printed.splitlines() if "│" in line]
    found = {cell[0].strip(): cell[1].strip() for cell in cells}
    assert "lines of Python outside tests" in found
    assert int(found["frames from the command line to the compiled step"]) <= 8
    lines, kilobytes = re.findall(r"[\d.]+", found["README"])
    assert int(lines) <= 150
    assert float(kilobytes) <= 12


def test_what_is_easy_to_let_slip():
    """Reasons in comments, examples."""
    paths = [path for path in measures.tracked(".py") if not measures.is_test(path)]
    texts = [path.read_text(encoding="utf-8") for path in paths]
    comments, lines = sum(map(measures.count_comments, texts)), sum(t.count("\n") for t in texts)
    assert 100 * comments / lines >= MIN_COMMENTS
    docstrings = [d for t in texts if ">>>" in t for d in measures.docstrings(ast.parse(t))]
    assert sum(">>>" in text for text in docstrings) >= 30
