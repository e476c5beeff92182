"""The authors' factor lists: golden counts, and None where they published nothing."""

import math

import pytest

from mpojax import mpo
from mpojax.compression import MatrixRule
from mpojax.mpo import published


@pytest.mark.parametrize(
    ("size", "bonds", "total", "auxiliary"),
    [
        ((768, 768), (12, 192, 192, 12), 663840, 74016),
        ((768, 3072), (12, 192, 384, 16), 2544016, 184720),
        ((3072, 768), (12, 192, 384, 16), 2544016, 184720),
        ((768, 2304), (16, 256, 216, 9), 1882001, 112529),
        ((1024, 1024), (16, 256, 256, 16), 1180160, 131584),
        ((1024, 4096), (16, 256, 512, 16), 4522496, 328192),
        ((4096, 1024), (16, 256, 512, 16), 4522496, 328192),
        ((2048, 2048), (16, 256, 256, 16), 4325888, 131584),
        ((30000, 128), (10, 200, 480, 12), 4110644, 270644),
        ((30522, 768), (24, 768, 768, 24), 24773760, 1180800),
    ],
)
def test_golden_counts_of_five_cores(size, bonds, total, auxiliary):
    shape = mpo.MPOShape.published(*size)
    assert (shape.in_features, shape.out_features) == size
    assert shape.bond_dims == bonds
    assert (shape.num_params, shape.num_auxiliary_params) == (total, auxiliary)
    assert shape.is_full
    assert shape.is_padded == (size[0] == 30522)
    assert MatrixRule().full_shape(*size) == shape


@pytest.mark.parametrize(
    ("size", "n", "total"),
    [
        ((768, 768), 3, 598016),
        ((768, 768), 7, 676640),
        ((768, 768), 9, 729632),
        ((1024, 1024), 3, 1056768),
        ((1024, 1024), 7, 1180192),
        ((1024, 1024), 9, 1188384),
    ],
)
def test_golden_counts_by_number_of_cores(size, n, total):
    assert mpo.MPOShape.published(*size, n=n).num_params == total
    assert MatrixRule(cores=n).full_shape(*size).num_params == total


def test_768x3072_by_number_of_cores():
    shapes = {n: mpo.MPOShape.published(768, 3072, n=n) for n in (2, 3, 7, 9)}
    assert {n: shape.bond_dims for n, shape in shapes.items()} == {
        2: (1152,),
        3: (96, 128),
        7: (4, 32, 512, 288, 24, 4),
        9: (4, 16, 64, 512, 384, 64, 16, 4),
    }
    ratios = [round(shape.ratio, 5) for shape in shapes.values()]
    assert ratios == [1.56250, 1.01085, 1.14696, 1.17731]


def test_the_published_bert_table_is_padded_to_30720_rows():
    shape = mpo.MPOShape.published(30522, 768)
    assert (shape.padded_in_features, shape.padded_out_features) == (30720, 768)


@pytest.mark.parametrize("size", [(384, 384), (30522, 384), (768, 128), (30522, 128), (12, 12)])
def test_sizes_without_published_lists_get_automatic_ones(size):
    assert mpo.MPOShape.published(*size) is None
    assert MatrixRule().full_shape(*size) == mpo.MPOShape.balanced(*size)


def test_every_list_multiplies_to_its_size():
    for n, sizes in published._SIZES.items():
        for size, factors in sizes.items():
            assert (len(factors), math.prod(factors)) == (n, size)
    for (rows, columns), (left, right) in published._PAIRS.items():
        assert math.prod(right) == columns
        assert math.prod(left) == (30720 if rows == 30522 else rows)
