"""Write what saved runs say, again: `python -m utils.reporting results/demo/table3`.

For every setting given: summary.csv, summary.md and summary.tex, figures/ and report.html. With
--docs also the tables of README.md and docs/results.md (docs.py says how they are marked). Nothing
is trained or evaluated.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from utils.errors import UserError, exit_cleanly
from utils.options import ArgumentParser
from utils.reporting.comparisons import baselines_of
from utils.reporting.docs import write_docs
from utils.reporting.plots import draw_all
from utils.reporting.report import write_report
from utils.reporting.tables import write_summary

ROOT = Path(__file__).resolve().parents[2]


def write_all(
    setting: Path, baselines: Sequence[str] = (), others: Sequence[Path] = ()
) -> str:
    """Tables, figures and report of one setting; returns the tables' text.

    baselines: methods to which paired differences are taken, by default those of the present
    summary.md. others: settings whose methods stand in Figure 1, too. Raises UserError where no run
    is finished.
    """
    summary = setting / "summary.md"
    if not baselines and summary.exists():
        baselines = baselines_of(summary.read_text(encoding="utf-8"))
    text = write_summary(setting, baselines)
    draw_all(setting, others)
    return f"{text}\n{write_report(setting)}"


@exit_cleanly
def main(arguments: list[str] | None = None) -> None:
    parser = ArgumentParser(description="Tables, figures and report from saved runs.")
    parser.add_argument("settings", type=Path, nargs="*", help="folders such as results/demo")
    parser.add_argument("--baseline", nargs="+", default=[], metavar="ROW",
                        help="methods to take paired differences to, such as erm")
    parser.add_argument("--with", type=Path, nargs="+", default=[], dest="others",
                        metavar="SETTING", help="settings whose methods Figure 1 shows too")
    parser.add_argument("--docs", action="store_true",
                        help="write the marked tables of README.md and docs/results.md, too")
    parser.add_argument("--results", type=Path, default=Path("results"),
                        help="the folder that holds the settings that --docs names")
    options = parser.parse_args(arguments)
    if not options.settings and not options.docs:
        raise UserError("nothing to write: give a setting's folder (results/demo) or --docs")
    for setting in options.settings:
        print(write_all(setting, options.baseline, options.others))
    if options.docs:
        print("\n".join(write_docs(ROOT, options.results)))


if __name__ == "__main__":
    main()
