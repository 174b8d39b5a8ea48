"""Adult, German and COMPAS, and FairIF's Table 4 from start to end."""

import json
import lzma
import shutil

import numpy as np
import pytest

from datasets import tabular
from datasets.base import ArrayTable
from models.fairif import influence, tables
from utils.errors import UserError
from utils.files import write_json


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


def test_table_4_runs_resumes_and_refuses_other_settings(tmp_path, capsys):
    command = ["--splits", "2", "--datasets", "german", "--results", str(tmp_path),
               "--baselines", "domind", "influence"]
    tables.main(command)
    printed = capsys.readouterr().out
    folder = tmp_path / "fairif_table4_logistic"
    assert printed.strip() == (folder / "summary.md").read_text().strip()
    assert "[75.50]" in printed and "[0.024]" in printed  # the paper's Original and FairIF
    csv = (folder / "summary.csv").read_text().splitlines()
    names = ["ERM", "DOMIND", "Influence", "FairIF", "shuffled eps"]
    pairs = [f"{name} minus ERM" for name in names[1:]] + ["FairIF minus shuffled eps"]
    assert [line.split(",")[1] for line in csv[1:]] == names + pairs
    assert csv[1].startswith("german,ERM,none,2,") and csv[2].startswith("german,DOMIND,train,2,")
    splits = [json.loads((folder / "german" / f"split{k}.json").read_text()) for k in (0, 1)]
    column = {name: [100 * split["rows"][name]["acc"] for split in splits]
              for name in ("erm", "fairif")}
    printed_figure = {line.split(",")[1]: float(line.split(",")[4]) for line in csv[1:]}
    assert printed_figure["ERM"] == pytest.approx(np.mean(column["erm"]), abs=1e-4)
    difference = np.mean(column["fairif"]) - np.mean(column["erm"])
    assert printed_figure["FairIF minus ERM"] == pytest.approx(difference, abs=2e-4)
    tex = (folder / "summary.tex").read_text()
    best = max(names, key=printed_figure.get)
    assert tex.count(r"\begin{tabular}") == 2 and tex.count("{") == tex.count("}")
    line = next(line for line in tex.splitlines() if line.startswith(f"{best} & "))
    assert line.split(" & ")[2].startswith(rf"\textbf{{{printed_figure[best]:.2f}}} $\pm$ ")
    assert "FairIF minus shuffled eps & $" in tex
    for split in splits:
        before, after = (np.abs(split["check"][key]).sum() for key in ("gaps", "gaps_after"))
        assert after < 0.5 * before and split["check"]["gradient_norm"] <= 1e-7

    splits[0]["rows"]["erm"]["acc"] = 1.0  # a finished split is read, not computed again
    write_json(folder / "german" / "split0.json", splits[0])
    (folder / "german" / "split1.json").unlink()
    tables.main(command)
    second = json.loads((folder / "german" / "split1.json").read_text())
    assert second == splits[1]  # and an interrupted one comes out the same
    changed = (folder / "summary.csv").read_text().splitlines()[1]
    assert float(changed.split(",")[4]) == pytest.approx(50 * (1 + splits[1]["rows"]["erm"]["acc"]))
    with pytest.raises(SystemExit) as stop:
        tables.main([*command, "--temperature", "0.5"])
    assert stop.value.code == 2 and "temperature was 0.3 and is now 0.5" in capsys.readouterr().err


@pytest.mark.parametrize(("flags", "given", "held"), [
    ([], ("exact", "gauss_newton"), {"inverse": "exact"}),
    (["--model", "mlp"], ("cg", "gauss_newton"), {"inverse": "cg"}),
    (["--inverse", "cg"], ("cg", "gauss_newton"), {"inverse": "cg"}),
    (["--inverse", "lissa"], ("lissa", "gauss_newton"), {"inverse": "lissa"}),
    (["--product", "hessian"], ("exact", "hessian"), {"inverse": "exact", "product": "hessian"}),
])
def test_inverse_and_product_reach_the_computation(flags, given, held, tmp_path, monkeypatch):
    calls, inverse_hvp = [], influence.inverse_hvp

    def recorded(*arguments, **settings):
        calls.append((settings["method"], settings["product"]))
        return inverse_hvp(*arguments, **settings)

    monkeypatch.setattr(influence, "inverse_hvp", recorded)
    tables.main(["--splits", "2", "--datasets", "german", "--results", str(tmp_path),
                 "--baselines", "--name", "t", *flags])
    assert calls == [given] * 2
    config = json.loads((tmp_path / "t" / "german" / "split0.json").read_text())["config"]
    # by default the settings of results from before the flags, so that those stay valid
    before = {"model", "baselines", "relaxation", "temperature", "draws", "lambda", "penalty", "l2",
              "inverse", "fractions"}
    assert config.keys() == before | held.keys()
    assert {key: config[key] for key in held} == held


def test_the_columns_of_a_categorical_attribute_are_one_block():
    table = tabular.read("german")
    blocks = table.blocks()
    numeric = set(range(len(table.columns))) - {column for block in blocks for column in block}
    assert {table.columns[i] for i in numeric} == {
        "duration", "amount", "installment_rate", "residence", "age", "credits", "liable"}
    for block in blocks:
        assert (table.x[:, list(block)].sum(axis=1) == 1).all()


def test_table_4_with_the_mlp(tmp_path, capsys):
    tables.main(["--splits", "2", "--datasets", "german", "--results", str(tmp_path),
                 "--model", "mlp", "--baselines"])
    split = json.loads((tmp_path / "fairif_table4_mlp" / "german" / "split0.json").read_text())
    assert list(split["rows"]) == ["erm", "fairif", "shuffled"]
    assert 1e-7 < split["check"]["gradient_norm"] <= 0.05
    assert "MLP (64)" in capsys.readouterr().out
