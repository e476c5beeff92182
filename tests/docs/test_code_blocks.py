"""Python blocks of the documentation run as they stand, page by page."""

import numpy as np
import pytest

import mpojax as mj
from tests.docs import pages

RUN = [page for page in pages.PAGES if page != pages.README and pages.blocks(page, "python")]


@pytest.mark.parametrize("page", RUN, ids=pages.name)
def test_python_blocks(page, page_folder):
    names = {"__name__": "__page__"}
    for number, block in enumerate(pages.blocks(page, "python"), start=1):
        exec(compile(block, f"{page.name}, block {number}", "exec"), names)


def test_the_ten_lines_of_the_readme(page_folder, capsys):
    code = pages.blocks(pages.README, "python")[0]
    assert len([line for line in code.splitlines() if line.strip()]) <= 14
    names = {}
    exec(code, names)
    report = names["report"]
    assert len(report.rows) + len(report.kept_dense) == 6
    assert report.parameters <= 0.75 * report.dense_parameters
    found = report.choice.found
    assert found[report.choice.chosen] == min(v for k, v in found.items() if k != "dense")
    assert "layers/0/attention/query" in capsys.readouterr().out
    batch = names["batches"][0]
    hidden = mj.load("small")(batch["input_ids"], batch["attention_mask"])
    assert hidden.shape == (32, 16, 12)
    dense = mj.load("dense")
    expected = mj.models.to_arrays(mj.merge(names["small"]))
    for name, array in mj.models.to_arrays(dense).items():
        np.testing.assert_array_equal(array, expected[name])
    assert (page_folder / "dense/vocab.txt").is_file()
