"""Tables as text."""

from mpojax import tables


def test_brackets_are_text():
    made = tables.text(["row [bold]", "b"], [["layers/[0]/[red]up", "1"], ["[/b]", "2"]])
    assert [line.split() for line in made.splitlines() if "─" not in line] == [
        ["row", "[bold]", "b"],
        ["layers/[0]/[red]up", "1"],
        ["[/b]", "2"],
    ]
