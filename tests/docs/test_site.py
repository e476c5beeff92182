"""The site builds; its navigation, figures and messages are those of the project."""

import ast
import importlib.util
import os
import re
import subprocess
import sys

import pytest

import mpojax as mj
from tests.docs import pages
from tools import module_graph


@pytest.mark.slow
def test_the_site_builds_strictly(tmp_path):
    for name in ("mkdocs", "material", "mkdocstrings_handlers"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed (pip install -e '.[docs]')")
    run = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=pages.ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    for page in tmp_path.rglob("*.html"):  # nothing is loaded from elsewhere
        text = page.read_text(encoding="utf-8")
        assert not re.search(r'<(script|img|link rel="stylesheet")[^>]*(src|href)="?https?:', text)


def test_examples_and_figures_of_the_site():
    for name in ("mkdocs", "griffe"):
        pytest.importorskip(name, reason="pip install -e '.[docs]'")
    from tools import docs_hooks

    text = "Text.\n\nExample:\n\n    >>> f(\n    ...     1)\n    2\n\n>>> g()\n3\n\nMore."
    made = docs_hooks.fenced(text)
    assert (
        "**Example**\n\n```pycon\n>>> f(\n...     1)\n2\n```\n\n```pycon\n>>> g()\n3\n```" in made
    )
    link = "![x](../../experiments/results/a/b.png) ![y](../experiments/results/c.png)"
    assert docs_hooks.on_page_markdown(link) == "![x](../results/a/b.png) ![y](results/c.png)"


def test_links_between_pages_lead_somewhere():
    for page in pages.PAGES:
        text = page.read_text(encoding="utf-8")
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_page_is_in_the_navigation():
    listed = (pages.ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in (pages.ROOT / "docs").rglob("*.md"):
        assert page.relative_to(pages.ROOT / "docs").as_posix() in listed


def test_the_readme_is_short():
    text = pages.README.read_text(encoding="utf-8")
    assert text.count("\n") <= 150
    assert len(text.encode()) <= 12_000


def _messages() -> str:
    """All texts in the code of the library and its commands, gaps of f-strings as one space."""
    found = []
    for folder in ("mpojax", "experiments"):
        for path in (pages.ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
                elif isinstance(node, ast.JoinedStr):
                    parts = [v.value if isinstance(v, ast.Constant) else " " for v in node.values]
                    found.append("".join(parts))
    return "\n".join(found)


def test_messages_of_the_faq_are_those_of_the_library():
    text = (pages.ROOT / "docs/faq.md").read_text(encoding="utf-8")
    headings = re.findall(r"^### `(.*)`$", text, re.MULTILINE)
    assert len(headings) > 8
    messages = _messages()
    for heading in headings:
        for part in heading.split("…"):
            assert part.strip() in messages, heading


def test_imports_form_no_cycle_and_arrows_point_down():
    graph = module_graph.imports(module_graph.PARTS)
    levels = module_graph.levels(graph)
    assert levels["mpojax/mpo"] == levels["mpojax/data"] == 0
    assert max(levels, key=levels.get) == "experiments"
    for name, others in graph.items():
        assert all(levels[other] < levels[name] for other in others)
    assert module_graph.svg(graph).count("<rect") == 1 + len(graph)
    assert "mpojax/nn           mpojax/mpo\n" in module_graph.as_text(graph)


def test_the_graph_of_a_toy(tmp_path):
    for name, text in (
        ("a.py", "import json\n"),
        ("b.py", "from pkg import a\n"),
        ("c.py", "def f():\n    import pkg.b\n    from pkg.a import x\n"),
    ):
        (tmp_path / "pkg").mkdir(exist_ok=True)
        (tmp_path / "pkg" / name).write_text(text, encoding="utf-8")
    graph = module_graph.imports(("pkg/a", "pkg/b", "pkg/c"), tmp_path)
    assert graph == {"pkg/a": set(), "pkg/b": {"pkg/a"}, "pkg/c": {"pkg/a", "pkg/b"}}
    assert module_graph.reduced(graph)["pkg/c"] == {"pkg/b"}
    assert module_graph.levels(graph) == {"pkg/a": 0, "pkg/b": 1, "pkg/c": 2}
    assert module_graph.reachable({"x": {"y"}, "y": {"x"}}, "x") == {"x", "y"}


def test_the_graph_of_a_package(tmp_path, capsys):
    assert module_graph.main(["--package=mpojax/nn"]) == 0
    assert "mpojax/nn/linear" in capsys.readouterr().out
    path = tmp_path / "graph.svg"
    assert module_graph.main(["--package=mpojax/nn", f"--out={path}"]) == 0
    assert path.read_text(encoding="utf-8").startswith("<svg")


def test_the_citation_names_the_version_of_the_package_and_every_paper():
    text = (pages.ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {mj.__version__}\n" in text
    listed = set(re.findall(r"arxiv.org/abs/\d+\.\d+", pages.README.read_text(encoding="utf-8")))
    missing = {paper for paper in listed if paper not in text}
    assert missing <= {"arxiv.org/abs/2303.16753"}  # an earlier version of one that is there
