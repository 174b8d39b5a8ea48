"""Adult, German and COMPAS: the published counts, the splits, damaged files."""

import lzma
import shutil

import numpy as np
import pytest

from datasets import tabular
from datasets.base import ArrayTable
from utils.errors import UserError


def test_counts_are_the_papers():
    expected = {  # (0, 0), (0, 1), (1, 0), (1, 1); FairIF's Table 8
        "adult": [13026, 20988, 1669, 9539],
        "german": [201, 499, 109, 191],
        "compas": [1514, 1281, 1661, 822],
    }
    for name, counts in expected.items():
        table = tabular.read(name)
        assert list(table.counts().values()) == counts
        assert table.x.shape == (sum(counts), len(table.columns)) and np.isfinite(table.x).all()
        assert len(set(table.columns)) == len(table.columns)
        if name == "adult":
            assert len(table.columns) == 114  # the paper's number


def test_splits_are_seeded_disjoint_and_standardised_on_train_only():
    table = tabular.read("german")
    rows = np.arange(len(table), dtype=float)[:, None]
    marked = ArrayTable("german", np.hstack([table.x, rows]), table.y, table.a,
                           (*table.columns, "row"))
    parts = tabular.split(marked, 3)
    sizes = [len(part) for part in (parts.train, parts.val, parts.test)]
    assert sizes == [700, 100, 200]
    ids = np.concatenate([p.x[:, -1] for p in (parts.train, parts.val, parts.test)])
    assert len(np.unique(ids)) == len(table)
    assert np.allclose(parts.train.x.mean(axis=0), 0) and np.allclose(parts.train.x.std(axis=0), 1)
    assert not np.allclose(parts.test.x.mean(axis=0), 0, atol=1e-3)
    order = np.random.default_rng(3).permutation(len(table))
    assert np.array_equal(parts.test.y, table.y[order[800:]])
    assert np.array_equal(tabular.split(marked, 3).val.x, parts.val.x)
    assert not np.array_equal(tabular.split(marked, 4).val.x, parts.val.x)
    constant = ArrayTable("c", np.full((10, 1), 0.1), table.y[:10], table.a[:10], ("c",))
    assert (tabular.split(constant, 0).test.x == 0).all()


def test_missing_damaged_and_altered_raw_files_stop(tmp_path):
    root = tmp_path / "tabular"
    shutil.copytree(tabular.ROOT / "german", root / "german")
    path = root / "german" / "german.data.xz"
    assert len(tabular.read("german", root)) == 1000
    text = lzma.decompress(path.read_bytes())
    path.write_bytes(lzma.compress(text.replace(b" 1\n", b" 2\n", 1)))
    with pytest.raises(UserError, match="german.data.xz is not the published file"):
        tabular.read("german", root)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="german.data.xz"):
        tabular.read("german", root)
    with pytest.raises(UserError, match="adult.data.xz is missing"):
        tabular.read("adult", root)
    with pytest.raises(UserError, match="choose from adult, german, compas"):
        tabular.read("iris")


def test_the_columns_of_a_categorical_attribute_are_one_block():
    table = tabular.read("german")
    blocks = table.blocks()
    numeric = set(range(len(table.columns))) - {column for block in blocks for column in block}
    assert {table.columns[i] for i in numeric} == {
        "duration", "amount", "installment_rate", "residence", "age", "credits", "liable"}
    for block in blocks:
        assert (table.x[:, list(block)].sum(axis=1) == 1).all()
