"""Tables from small saved runs: exact text, the paper's row, paired intervals, empty groups."""

import csv
import json
import math
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from utils.errors import UserError
from utils.files import write_json
from utils.metrics import GROUPS, fairness_metrics, to_json
from utils.reporting.__main__ import main
from utils.reporting.comparisons import (
    Paired,
    beside_papers,
    differences,
    holm,
    intervals,
    paired_difference,
)
from utils.reporting.paper import eo_definition, marks_of, paper_row
from utils.reporting.results import Results
from utils.reporting.section import FIGURES, number
from utils.reporting.tables import collect, write_summary

SETTING = {"dataset": "celeba", "target": "Smiling", "protected": "Male"}
PAPER = {  # method: (paper_table, paper_row)
    "erm": ("3", "Baseline (ERM)"),
    "aim_fair": ("3", "AIM-Fair"),
}
RUNS = {  # method: {seed: correct of each group, out of COUNTS}
    "aim_fair": {100: (9, 18, 18, 8), 200: (8, 18, 17, 9)},
    "erm": {100: (8, 20, 19, 6), 200: (9, 20, 19, 7)},
    "full_finetuning": {100: (9, 18, 18, 8)},
}
COUNTS = (10, 20, 20, 10)


def write_run(folder, correct, counts=COUNTS, config=None, **more):
    y = np.repeat([group[0] for group in GROUPS], counts)
    a = np.repeat([group[1] for group in GROUPS], counts)
    right = np.concatenate([np.arange(n) < c for n, c in zip(counts, correct, strict=True)])
    metrics = to_json(fairness_metrics(np.where(right, y, 1 - y), y, a))
    write_json(folder / "metrics.json", {"test": metrics, "selected_epoch": 3, **more})
    if config is not None:
        write_json(folder / "config.json", config)


@pytest.fixture
def setting(tmp_path):
    folder = tmp_path / "tiny"
    for method, seeds in RUNS.items():
        config = dict(SETTING)
        if method in PAPER:
            config["paper_table"], config["paper_row"] = PAPER[method]
        else:
            config |= {"alpha": 0.5, "defaults_changed": {"alpha": 0.1}}
        for seed, correct in seeds.items():
            write_run(folder / method / f"seed{seed}", correct, config=config,
                      **({"passes": 9000 + seed} if method != "full_finetuning" else {}))
    (folder / "full_finetuning" / "seed200").mkdir()  # still running
    (folder / "figures").mkdir()
    return folder


GOLDEN = Path(__file__).parent / "golden"


def test_golden_text(setting, capsys):
    expected = (GOLDEN / "tiny_setting.md").read_text()
    for more in (["--baseline", "erm"], []):  # again: with the same baseline
        main([str(setting), *more])
        assert capsys.readouterr().out == f"{expected}\n{setting / 'report.html'}\n"
        assert (setting / "summary.md").read_text() == expected
        assert (setting / "summary.tex").read_text() == (GOLDEN / "tiny_setting.tex").read_text()
    assert (setting / "figures" / "accuracy_against_eo.png").exists()


def test_latex_is_well_formed_for_every_kind_of_row(tmp_path):
    for method, config in (
        ("erm", SETTING | {"paper_table": "2 (50%)", "paper_row": "ERM"}),
        ("fairif", {"dataset": "celeba", "target": "Blond_Hair", "protected": "Male",
                    "paper_table": "fairif-5", "paper_row": "FairIF"}),
        ("own", SETTING),
    ):
        write_run(tmp_path / "s" / method / "seed1", (8, 20, 19, 6), config=config)
    write_summary(tmp_path / "s")
    text = (tmp_path / "s" / "summary.tex").read_text()
    assert r"erm & Table 2 (50\%), ERM & 88.33 / 87.50 / $+0.83$" in text
    assert r"fairif & Table 5, FairIF" in text and "12.20* / n/a" in text
    assert text.count("impossible as printed (AOD $<$ EOD / 2)") == 1
    tables = re.findall(r"begin\{tabular\}\{(\w+)\}(.*?)\\end\{tabular\}", text, re.DOTALL)
    assert len(tables) == 4 and text.count("{") == text.count("}")
    for layout, body in tables:
        rows = [line for line in body.splitlines() if line.endswith(r"\\")]
        assert len(rows) > 1
        assert all(len(re.split(r"(?<!\\)&", row)) == len(layout) for row in rows)


def test_summary_csv(setting):
    write_summary(setting)
    with open(setting / "summary.csv", newline="") as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["erm", "full_finetuning", "aim_fair"]
    erm = rows["erm"]
    for column in ("wst_table", "wst_mean", "wst_std", "eo_worst_table", "eo_mean_std", "paper_eo"):
        assert column in erm
    assert "eo" not in erm
    assert "wst" not in erm
    assert erm["seeds"] == "2"
    # mean groups .85 1 .95 .65; EO worst .35 and .25, per-seed STD of those two: .1 / sqrt(2)
    assert [erm[f"g{y}{a}"] for y, a in GROUPS] == ["85.0000", "100.0000", "95.0000", "65.0000"]
    assert erm["eo_worst_table"] == erm["eo_worst_mean"] == "30.0000"
    assert float(erm["eo_worst_std"]) == pytest.approx(100 * 0.1 / math.sqrt(2), abs=1e-4)
    assert float(erm["difference_eo"]) == pytest.approx(30 - 23.84)
    assert float(erm["difference_acc"]) == pytest.approx(90 - 89.23)
    assert rows["full_finetuning"]["wst_std"] == "n/a"
    assert erm["passes"] == "9150.0000" and rows["full_finetuning"]["passes"] == "n/a"
    assert rows["full_finetuning"]["paper_row"] == "n/a"


def test_both_ways_of_averaging_are_kept_apart(setting):
    frame = collect(Results(setting)).set_index("method")
    # aim_fair: groups .9 .9 .9 .8 and .8 .9 .85 .9, so means .85 .9 .875 .85, worst .8 and .8
    assert frame.wst_table["aim_fair"] == pytest.approx(85)
    assert frame.wst_mean["aim_fair"] == pytest.approx(80)
    assert frame.eo_worst_table["aim_fair"] == pytest.approx(10)
    assert frame.eo_mean_table["aim_fair"] == pytest.approx((5 + 7.5) / 2)
    assert set(FIGURES) == {"acc", "wst", "eo_worst", "eo_mean", "std", "ad", "aod", "eod"}


def test_empty_group_is_not_available_and_counted(tmp_path):
    write_run(tmp_path / "s" / "erm" / "seed1", (0, 5, 5, 5), counts=(0, 10, 10, 10))
    text = write_summary(tmp_path / "s")
    row = next(line for line in text.splitlines() if line.startswith("| erm"))
    groups = [group.strip() for group in row.strip("|").split("|")]
    assert groups == ["erm", "1", "50.00", *["n/a"] * 5, *["50.00"] * 3, "n/a"]
    assert (
        "Test images per group: y=0 a=0: 0, y=0 a=1: 10, y=1 a=0: 10, y=1 a=1: 10; "
        "what needs an empty group is n/a." in text
    )
    with open(tmp_path / "s" / "summary.csv", newline="") as file:
        stored = next(csv.DictReader(file))
    assert (stored["wst_table"], stored["g00"], stored["n00"]) == ("n/a", "n/a", "0")
    assert stored["eod_table"] == "0.0000"


def test_paired_difference_by_hand():
    a = {1: 3.0, 2: 5.0, 3: 10.0, 9: 100.0}
    b = {3: 4.0, 1: 1.0, 2: 4.0, 8: 0.0}
    # differences 2, 1, 6: mean 3, s = sqrt(7); t(0.975, 2 degrees of freedom) = 4.302653
    result = paired_difference(a, b)
    half = 4.302653 * math.sqrt(7) / math.sqrt(3)
    # with 2 degrees of freedom p = 1 - t / sqrt(t^2 + 2), and t^2 = 9 / (7 / 3)
    p = 1 - math.sqrt(27 / 7 / (27 / 7 + 2))
    assert result == pytest.approx((3, 3 - half, 3 + half, 3, p), rel=1e-6)
    # Nadeau and Bengio: 1/n + n_test / n_train in place of 1/n
    wider = paired_difference(a, b, test_to_train=2 / 7)
    n = wider.pairs
    assert wider.mean == result.mean
    assert wider.high - wider.low == pytest.approx(
        (result.high - result.low) * math.sqrt((1 / n + 2 / 7) * n))
    one = paired_difference({1: 2.0}, {1: 5.0})
    assert (one.mean, one.pairs) == (-3, 1)
    assert math.isnan(one.low) and math.isnan(one.p)
    same, shifted = {1: 2.0, 2: 3.0}, {1: 1.0, 2: 2.0}
    assert (paired_difference(same, same).p, paired_difference(same, shifted).p) == (1, 0)
    none = paired_difference({1: 2.0}, {2: 5.0})
    assert math.isnan(none.mean)
    assert none.pairs == 0
    assert math.isnan(paired_difference({1: 1.0, 2: math.nan}, {1: 0.0, 2: 0.0}).mean)


def test_holms_correction_by_hand():
    # of three: .01 <= .05 / 3, .02 <= .05 / 2, .06 > .05; what was not tested does not count
    assert holm([0.06, 0.01, math.nan, 0.02]) == [False, True, False, True]
    # .03 > .05 / 2 ends it, and .04, below .05, falls with it
    assert holm([0.04, 0.03]) == [False, False]
    assert holm([]) == []


def test_a_star_marks_what_stands_with_the_correction():
    sure, unsure = Paired(2, 1, 3, 9, 0.004), Paired(2, 0.1, 3.9, 9, 0.04)
    rows = {"a": {"acc": sure, "wst": unsure}, "b": {"acc": unsure, "wst": unsure}}
    assert intervals(rows, ["acc", "wst"]) == {
        "a": {"ACC": "+2.00 [+1.00, +3.00]*", "WST": "+2.00 [+0.10, +3.90]"},
        "b": {"ACC": "+2.00 [+0.10, +3.90]*", "WST": "+2.00 [+0.10, +3.90]"}}


def test_differences_pair_by_seed(setting):
    paired = differences(Results(setting), "erm")
    assert {m: of["acc"].pairs for m, of in paired.items()} == {"full_finetuning": 1, "aim_fair": 2}
    # WST: .8 - .6 and .8 - .7; half width 12.706205 * (.1 / sqrt(2)) / sqrt(2)
    assert paired["aim_fair"]["wst"].mean == pytest.approx(15)
    assert paired["aim_fair"]["wst"].high == pytest.approx(15 + 12.706205 * 5, rel=1e-6)


def test_what_the_paper_does_not_print_so_is_marked():
    assert marks_of("3", "Linear probing", "celeba", "Smiling", "Young") == "g10 computed"
    assert marks_of("3", "Linear probing", "celeba", "Smiling", "Male") is None
    assert marks_of("fairif-5", "FairIF", "celeba", "Blond_Hair", "Male") is None
    where = ("celeba", "Smiling", "Male")
    corrected = "g10 printed 91.26; g11 printed 89.44"
    assert marks_of("7", "AIM-Fair 2x synthetic", *where) == corrected
    ours = dict.fromkeys(("acc_table", "wst_table", "eo_worst_table", "std_table", "paper_acc",
                          "paper_wst", "paper_eo", "paper_std", "difference_acc",
                          "difference_wst", "difference_eo", "difference_std"), 1.0)
    row = {"method": "twice", "paper_table": "7", "paper_row": "AIM-Fair 2x synthetic",
           "paper_eo_definition": "worst", "paper_note": None, **ours}
    for marks, lines in ((corrected, [f"not as printed: twice: {corrected}."]), (None, [])):
        (section,) = beside_papers(pd.DataFrame([row | {"paper_marks": marks}]))
        assert [line.split("are ")[1] for line in section.lines] == lines
    # printed, though other group accuracies of the row are not
    assert paper_row("3", "Full fine-tuning", "celeba", "Smiling", "Young")["g01"] == 90.06
    assert paper_row("3", "Data repairing", "utkface", "Female", "White")["g10"] == 95.71


def test_paper_rows():
    row = paper_row("3", "AIM-Fair", "celeba", "Smiling", "Male")
    assert (row["acc"], row["wst"], row["eo"], row["std"]) == (89.02, 84.20, 6.07, 2.74)
    assert row["g11"] == 84.20
    assert paper_row("7", "AIM-Fair 2x synthetic", None, None, None)["wst"] == 83.36
    assert paper_row("3", "AIMFair", None, None, None) is None  # ours stands alone
    with pytest.raises(UserError, match=r"3 rows of .*paper_tables/aim_fair.csv fit"):
        paper_row("3", "AIM-Fair", None, None, None)
    with pytest.raises(UserError, match="no table 12 of figures; it has 1, .*, 10, 11$"):
        paper_row("12", "AIM-Fair", None, None, None)
    assert eo_definition("8 (ViT-S/32)", "LoRA") == "mean"
    assert eo_definition("3", "Full fine-tuning") == "worst"
    assert eo_definition("2 (50%)", "AIM-Fair") == "worst"
    assert eo_definition("2 (50%)", "ERM") == eo_definition("1", "JTT") == "not stated"


@pytest.mark.parametrize(
    ("table", "row", "which", "ours"),
    [("8 (ViT-S/32)", "LoRA", "mean", 20.0), ("1", "ERM", "not stated", None)],
)
def test_eo_beside_the_paper_follows_its_definition(tmp_path, table, row, which, ours):
    config = SETTING | {"paper_table": table, "paper_row": row}
    write_run(tmp_path / "s" / "erm" / "seed1", (8, 20, 20, 8), config=config)  # both differ by .2
    write_run(tmp_path / "s" / "erm" / "seed2", (6, 20, 20, 10), config=config)  # .4 and 0
    result = collect(Results(tmp_path / "s")).iloc[0]
    assert result.paper_eo_definition == which
    assert result.eo_worst_table == pytest.approx(30)
    if ours is None:
        assert math.isnan(result.difference_eo)
        assert "n/a / 25.30 / n/a" in write_summary(tmp_path / "s")
    else:
        assert result.difference_eo == pytest.approx(ours - result.paper_eo)


def test_users_mistakes(setting, tmp_path, capsys):
    for arguments, message in (
        ([str(tmp_path / "nothing")], "has no runs"),
        ([str(setting), "--baseline", "jtt"], "jtt has no finished run; choose from erm, full"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert message in error
        assert error.count("\n") == 1
    metrics = setting / "erm" / "seed100" / "metrics.json"
    stored = json.loads(metrics.read_text())
    del stored["test"]["wst"]
    for content in (json.dumps(stored), "{", "[]", '{"test": null}'):
        metrics.write_text(content)
        with pytest.raises(UserError, match=r"erm/seed100/metrics\.json"):
            collect(Results(setting))


def test_unfinished_only_and_mixed_settings(tmp_path):
    (tmp_path / "s" / "erm" / "seed1").mkdir(parents=True)
    with pytest.raises(UserError, match="no finished run"):
        collect(Results(tmp_path / "s"))
    for seed, target in ((1, "Smiling"), (2, "Young")):
        folder = tmp_path / "s" / "erm" / f"seed{seed}"
        write_run(folder, (9, 9, 9, 9), config={"target": target})
    with pytest.raises(UserError, match="differ in"):
        collect(Results(tmp_path / "s"))


def test_number():
    assert [number(v) for v in (1.25, -0.001, math.nan, 100.0)] == ["1.25", "0.00", "n/a", "100.00"]
    assert [number(v, sign=True) for v in (0.5, -0.5, -0.001)] == ["+0.50", "-0.50", "+0.00"]
