"""README.md and docs/results.md: marked tables come from saved runs, the words between stay."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from test_tables import SETTING, write_run

from utils.errors import UserError
from utils.files import write_json
from utils.records import environment, processor
from utils.reporting import __main__ as reporting
from utils.reporting.docs import BLOCK, DOCUMENTS, refresh, sections_of
from utils.reporting.results import Results
from utils.reporting.tables import write_summary

ROOT = Path(__file__).resolve().parents[1]
TEXT = """Words before.
<!-- table: demo/table3 -->
| old | table |
<!-- end -->
- A sentence of a person.

<!-- table: nowhere -->
| kept |
<!-- end -->
"""


def made(commit="abc1234", cpu="A Processor"):
    return SETTING | {"environment": {"commit": commit, "processor": cpu}}


@pytest.fixture
def results(tmp_path):
    table3 = tmp_path / "results" / "demo" / "table3"
    paper = {"paper_table": "3", "paper_row": "AIM-Fair"}
    write_run(table3 / "aim_fair" / "seed1", (9, 18, 18, 8), config=made() | paper)
    write_run(table3 / "aim_fair" / "seed2", (8, 18, 17, 9), config=made() | paper)
    write_run(table3 / "erm" / "seed1", (8, 20, 19, 6), config=made("def5678"))
    (table3 / "erm" / "seed2").mkdir()
    (tmp_path / "results" / "nowhere" / "erm" / "seed1").mkdir(parents=True)  # not finished
    return tmp_path / "results"


def test_a_marked_table_is_replaced_and_says_where_it_comes_from(results):
    new, written, left = refresh(TEXT, results)
    assert (written, left) == (["demo/table3"], ["nowhere"])
    assert new == """Words before.
<!-- table: demo/table3 -->
| in %     |           ACC |           WST |          EO worst ± | EO mean |         STD | passes |
| -------- | ------------: | ------------: | ------------------: | ------: | ----------: | -----: |
| erm      |         88.33 |         60.00 |         35.00 ± n/a |   27.50 |       15.56 |    n/a |
| aim_fair | 87.50 [89.02] | 85.00 [84.20] | 10.00 ± 0.00 [6.07] |    6.25 | 2.07 [2.74] |    n/a |

Commit def5678 and abc1234; A Processor; seeds 1 (erm); 1, 2 (aim_fair).

<!-- end -->
- A sentence of a person.

<!-- table: nowhere -->
| kept |
<!-- end -->
"""
    assert refresh(new, results)[0] == new


def test_differences_to_the_summarys_baselines_stand_below(results):
    setting = results / "demo" / "table3"
    shutil.rmtree(setting / "erm" / "seed2")
    write_run(setting / "erm" / "seed2", (8, 18, 17, 9), config=made("def5678"))
    write_summary(setting, ["erm"])
    new, _, _ = refresh(TEXT, results)
    # EO worst 10 - 35 and, twice the same run, 0: mean -12.5, half 12.7062 * 12.5
    assert re.search(r"\| minus erm +\| +ACC +\| +WST +\| +EO worst \|\n", new)
    assert ("-12.50 [-171.33, +146.33] |\n\nPoints, paired by seed [95% t interval]. "
            "\\* stands with Holm's correction over the rows.\n") in new
    assert refresh(new, results)[0] == new


def test_what_was_chosen_for_a_row_stands_below(results):
    selected = {"row": "search/jtt/upweight=5", "from": ["search/jtt/upweight=5", "b", "c"],
                "rule": "the best", "passes": 123456}
    write_run(results / "demo" / "table3" / "jtt" / "seed1", (8, 18, 17, 9),
              config=made() | {"selected": selected})
    new, _, _ = refresh(TEXT, results)
    assert "\nChosen on validation: jtt upweight=5, of 3 with 123.5 thousand passes.\n" in new


def test_tensor_effects_are_correlations(tmp_path):
    run = tmp_path / "results" / "effect" / "tensor_effect" / "seed1"
    write_run(run, (9, 18, 18, 8), config=made())
    record = {"acc": 0.9, "loss": 0.3, "eo_worst": 0.1, "soft_eo": 0.1}
    tensors = {name: record | {"acc": 0.9 - i / 100, "delta1": i, "delta2": i * i, "elements": 1,
                               "selected": i > 1} for i, name in enumerate("abc")}
    write_json(run / "effects.json", {
        "erm": record, "statistics": record, "tensors": tensors, "blocks": {}})
    new, _, _ = refresh("<!-- table: effect -->\n<!-- end -->\n", tmp_path / "results")
    assert re.search(r"\| Delta1 +\| +-1.00 \[n/a, n/a\] ", new)
    assert "Delta1 with Delta2: rho +1.00" in new and "Commit abc1234; A Processor; seeds 1." in new


def test_fairifs_figures_are_those_of_its_paper(tmp_path):
    config = made() | {"target": "Blond_Hair", "paper_table": "fairif-5", "paper_row": "FairIF"}
    for seed, correct in ((1, (9, 18, 18, 8)), (2, (8, 18, 17, 9))):
        write_run(tmp_path / "fairif" / f"seed{seed}", correct, config=config)
    assert sections_of(Results(tmp_path))[0].frame.to_dict("records") == [{
        "in %": "fairif", "ACC ±": "87.50 ± 1.18 [95.37]", "AD ±": "5.00 ± 2.36 [3.81]",
        "AOD ±": "6.25 ± 1.77 [12.20]", "EOD ±": "7.50 ± 3.54 [31.45]", "passes": "n/a",
    }]


@pytest.mark.parametrize("broken", [
    TEXT.replace("<!-- end -->\n- A", "- A"), TEXT.removesuffix("<!-- end -->\n"),
])
def test_a_marker_without_its_end_is_named(broken, results):
    with pytest.raises(UserError, match="<!-- table: .* --> has no line <!-- end -->"):
        refresh(broken, results)


def test_the_command_writes_both_documents(results, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(reporting, "ROOT", tmp_path)
    for name in DOCUMENTS:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(TEXT)
    reporting.main(["--docs", "--results", str(results)])
    assert capsys.readouterr().out.splitlines() == [
        line for name in DOCUMENTS for line in (
            f"{name}: demo/table3 written",
            f"{name}: nowhere left as it is, no finished run in {results / 'nowhere'}")]
    assert all("Commit def5678" in (tmp_path / name).read_text() for name in DOCUMENTS)
    (tmp_path / DOCUMENTS[1]).write_text(TEXT.removesuffix("<!-- end -->\n"))
    with pytest.raises(SystemExit):
        reporting.main(["--docs", "--results", str(results)])
    assert capsys.readouterr().err.startswith(f"error: {DOCUMENTS[1]}: ")


def test_the_repositorys_own_markers_are_whole():
    found = [match[1] for name in DOCUMENTS
             for match in BLOCK.finditer((ROOT / name).read_text(encoding="utf-8"))]
    assert "demo" in found and "demo/table3" in found
    for name in DOCUMENTS:
        text = (ROOT / name).read_text(encoding="utf-8")
        assert refresh(text, ROOT / "no_results")[0] == text


def test_a_run_records_its_processor():
    assert processor() and environment()["processor"] == processor()
