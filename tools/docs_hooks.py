"""What the site needs besides its pages: figures of studies, examples of docstrings as code."""

import pathlib
import re

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

RESULTS = pathlib.Path(__file__).parents[1] / "experiments/results"
# Lines from a prompt to the next empty line, indented as deeply as the prompt or deeper.
_EXAMPLE = re.compile(r"^( *)>>> .*(?:\n\1 *\S.*)*", re.MULTILINE)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the figures of `experiments/results` to the site, in `results/`."""
    for path in sorted(RESULTS.rglob("*.png")):
        name = f"results/{path.relative_to(RESULTS).as_posix()}"
        files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, **_) -> str:
    """Makes links to figures, written as they are in the repository, those of the site."""
    return re.sub(r"\]\(\.\./((?:\.\./)*)experiments/results/", r"](\1results/", markdown)


class Examples(griffe.Extension):
    """Makes every interactive example of a docstring a block of code."""

    def on_object(self, *, obj: griffe.Object, **_) -> None:
        """Called for each function, class and module once it is read."""
        if obj.docstring is not None:
            obj.docstring.value = fenced(obj.docstring.value)


def fenced(text: str) -> str:
    """The text with fences around its examples, which begin at the margin then."""

    def block(found: re.Match) -> str:
        indent = len(found[1])
        lines = [line[indent:] for line in found[0].splitlines()]
        return "\n".join(["```pycon", *lines, "```"])

    return _EXAMPLE.sub(block, re.sub(r"^Examples?:$", "**Example**", text, flags=re.MULTILINE))
