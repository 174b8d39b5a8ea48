"""How varied a prompt set is: each measure on sets for which it can be counted by hand."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from prompt_sets import PHRASES, POSES, WORDS, varied
from test_prompts import ask, committed, server  # noqa: F401 - server is a fixture

from prompts import build, check, coverage, variety
from prompts.attributes import negations
from prompts.instruction import CELEBA_OTHERS, STARTS_WITH
from utils.metrics import GROUPS


def rules(document: dict) -> set[tuple[str, str | None]]:
    return {(failure.rule, failure.group) for failure in check.check_groups(document)}


def test_a_varied_set_passes():
    assert rules(varied()) == rules(varied(head_poses=True)) == set()


def test_openings_are_counted():
    document = varied()
    group = document["cells"]["1_0"]
    for i in range(11):  # two patterns, of six and of five prompts
        group[i] = group[i].replace(group[i].split()[5], "babim").replace(
            group[i].split()[6], "dodal" if i % 2 else "fifop")
    assert variety.shared_openings(group, STARTS_WITH) == 11
    assert rules(document) == {("openings", "1_0")}
    assert variety.measures(document)["openings"] == 11 / 20
    group[10] = f"{STARTS_WITH} wide smiling woman."
    assert rules(document) == set()


def test_an_opening_may_begin_with_an():
    assert variety.opening(f"{STARTS_WITH}n elderly, stern man in red.", STARTS_WITH) == (
        "elderly stern man"
    )


def test_words_shared_between_the_target_groups_are_counted():
    document = varied()
    document["cells"]["1_1"] = [p.replace("stern", "smiling") for p in document["cells"]["0_1"]]
    # Of seven words six are shared: stern and smiling differ.
    shared, best = variety.overlap(document["cells"]["0_1"], document["cells"]["1_1"])
    assert (shared, best) == pytest.approx((5 / 7, 5 / 7))
    assert rules(document) == {("overlap", "0_1")}
    document["cells"]["1_1"].reverse()  # the order hides it from the first measure alone
    shared, best = variety.overlap(document["cells"]["0_1"], document["cells"]["1_1"])
    assert shared < variety.LIMITS["overlap"]
    assert best == pytest.approx(5 / 7)
    assert rules(document) == {("overlap", "0_1")}


@pytest.mark.parametrize("shift", [0, 3])
def test_a_list_of_poses_gone_through_in_order_is_found(shift):
    document = varied(head_poses=True)
    for place, group in enumerate(document["cells"].values()):
        for i, prompt in enumerate(group):
            pose = POSES[(i + shift * place) % len(POSES)]
            group[i] = re.sub(r", .*", f", {pose}.", prompt)
    found = variety.measures(document)
    assert found["poses"] == len(POSES)
    assert found["cycle"] > 0.8
    assert ("cycle", None) in rules(document)


def test_full_profiles_are_found_and_slight_turns_are_not():
    full = ("in full right profile", "in profile", "head turned sharply left", "a side view")
    slight = ("in three-quarter profile", "head turned slightly left", "chin tilted to the side")
    assert all(variety.PROFILE.search(text) for text in full)
    assert not any(variety.PROFILE.search(text) for text in slight)


@pytest.mark.parametrize("attribute", CELEBA_OTHERS)
def test_an_attribute_that_no_prompt_names_is_missing(attribute):
    everything = {group: [f"Portrait with {text}." for text in PHRASES.values()]
                  for group in GROUPS}
    assert coverage.missing_attributes("Smiling", "Male", everything) == []
    without = {group: [f"Portrait with {text}." for name, text in PHRASES.items()
                      if name != attribute] for group in GROUPS}  # fmt: skip
    assert coverage.missing_attributes("Smiling", "Male", without) == [attribute]


def test_a_blurred_background_is_no_blurry_picture():
    behind = {(0, 0): ["A man, roses blurred behind."]}
    assert "blurry" in coverage.missing_attributes("Smiling", "Male", behind)


def test_an_attribute_of_one_sex_counts_in_its_groups_only():
    beards = {(y, a): ["A goatee and lipstick."] if a == 0 else ["A hat."] for y, a in GROUPS}
    missing = coverage.missing_attributes("Smiling", "Male", beards)
    assert "goatee" in missing
    assert "wearing lipstick" not in missing
    assert "goatee" not in coverage.missing_attributes("Smiling", "Young", beards)
    women = {(0, 0): ["A hat."]}
    assert "goatee" not in coverage.missing_attributes("Smiling", "Male", women)


def test_coverage_is_asked_of_larger_sets_only():
    assert ("coverage", None) in rules(varied(variety.COVERING))
    assert ("coverage", None) not in rules(varied(variety.COVERING - 1))


@pytest.mark.parametrize(("attribute", "text", "found"), [
    ("Smiling", "a stern man, not smiling", 1), ("Smiling", "an unsmiling man", 1),
    ("Smiling", "a man with no trace of a smile", 1), ("Smiling", "a man without a smile", 1),
    ("Smiling", "a stern man without glasses", 0), ("Smiling", "a man, not frowning", 1),
    ("Young", "a not young, elderly man", 1), ("Young", "an elderly man with no beard", 0),
    ("White", "a non-White man", 1), ("White", "a Black man", 0),
])  # fmt: skip
def test_denials_are_found(attribute, text, found):
    assert len(negations(attribute, text)) == found


def test_a_plain_set_is_held_to_no_measure():
    document = committed("Smiling_Male_plain")
    assert variety.broken_limits(document) == []
    assert not any(negations("Smiling", p) for group in document["cells"].values() for p in group)


def test_measures_are_printed_a_line_a_file(tmp_path, capsys):
    check.main(["--measures"])
    lines = capsys.readouterr().out.splitlines()
    files = sorted(path.stem for path in Path(check.__file__).parent.glob("*.json"))
    head, *rows = lines[-len(files) - 1 :]
    assert [row.split()[0] for row in rows] == files
    assert {"openings", "overlap", "missing", "negations", "cycle"} <= set(head.split())
    assert all(len(row.split()) == 1 + len(variety.COLUMNS) for row in rows)


def test_prompts_that_were_paid_for_are_written_whatever_the_set_is_like(
    server, tmp_path, capsys  # noqa: F811
):
    document = varied(12)
    document["cells"]["1_1"] = [p.replace("stern", "smiling") for p in document["cells"]["0_1"]]
    server.prompts = document["cells"]
    out = tmp_path / "Smiling_Male_contextual_12.json"
    code, _, err = ask(server, out, capsys, number=12)
    assert code == 0
    assert "[overlap]" in err
    assert json.loads(out.read_text())["cells"] == document["cells"]


def test_a_group_takes_only_so_many_prompts_that_begin_alike():
    document = build.new_document("celeba", "Smiling", "Male", 20, False, "m")
    alike = [f"{STARTS_WITH} wide smiling woman {one} {two}." for one, two in zip(WORDS, WORDS[9:])]
    refused = build.accept(document, (1, 0), alike)
    assert len(document["cells"]["1_0"]) == 10
    assert {reason for _, reason in refused} == {"begins as too many others do"}


def test_the_model_is_told_which_attributes_are_missing():
    document = build.new_document("celeba", "Smiling", "Male", 20, False, "m")
    document["cells"]["1_0"] = [f"{STARTS_WITH} smiling woman with bangs and a hat."]
    asked = build.request(document, (1, 0)).splitlines()[-1]
    assert asked.startswith("Attributes that none of these names: ")
    assert "lipstick" in asked
    assert "bangs" not in asked
    assert "goatee" not in asked
