"""What a row of a table was run with that the other rows were not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from utils.records import RECORD

NO_SETTING = RECORD | {"seed", "method", "selected", "defaults_changed", "uses_attributes"}
SEEN = {"validation": "of the validation images", "train": "of the training images"}


def row_settings(configs: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    """{row: {setting: its value as text}} from one config.json of each row; rows without are out.

    Named are hyper-parameters other than the method's defaults (train.py --set), with the default,
    and settings in which the row differs from most others that have them; all of them where no
    value is the most frequent. A row that was selected from others of the table (best.py) is left
    out, and so is what --search tried: `chosen` says it.
    """
    configs = {row: config for row, config in configs.items()
               if config.get("selected", {}).get("row") not in configs}
    usual: dict[str, Any] = {}
    held = {row: _settings(config) for row, config in configs.items()}
    for key in dict.fromkeys(key for settings in held.values() for key in settings):
        counts = Counter(settings[key] for settings in held.values() if key in settings)
        (first, most), *others = counts.most_common(2)
        usual[key] = None if others and others[0][1] == most else first
    result = {}
    for row, config in configs.items():
        defaults = {key: default for key, default in config.get("defaults_changed", {}).items()
                    if key in held[row]}
        texts = {key: value for key, value in held[row].items() if value != usual[key]}
        texts |= {key: f"{held[row][key]} (default {default})" for key, default in defaults.items()}
        if texts:
            result[row] = texts
    return result


def _settings(config: Mapping[str, Any]) -> dict[str, str]:
    """The settings of a config.json as text, without its notes and the digests of its lists."""
    tried = {pair.partition("=")[0] for name in config.get("selected", {}).get("from", ())
             for pair in name.rsplit("/")[-1].split(",")}
    hidden = NO_SETTING | {"paper_table", "paper_row"} | set(config.get("notes", ())) | tried
    return {
        key: "none" if value is None else str(value)
        for key, value in config.items() if key not in hidden and not key.endswith("_list")
    }


def lines(configs: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Under a table: whose protected labels are seen, what sets rows apart, what was chosen."""
    said = [chosen(row, config["selected"]) for row, config in configs.items()
            if config.get("selected")]
    return protected_labels(configs) + [
        f"Settings of {row}: {', '.join(f'{key} {text}' for key, text in texts.items())}."
        for row, texts in row_settings(configs).items()
    ] + said


def standing(selected: Mapping[str, Any]) -> str:
    """What was chosen, and where the seeds differ for how many of them."""
    seeds = selected.get("seeds", {selected["row"]: 1})
    names = {name.rsplit("/")[-1]: number for name, number in seeds.items()}
    if len(names) == 1:
        return next(iter(names))
    total = sum(names.values())
    return " or ".join(f"{name} ({number} of {total} seeds)" for name, number in names.items())


def chosen(row: str, selected: Mapping[str, Any]) -> str:
    """The sentence that says what a row was chosen from, by what, and what that cost."""
    names = [name.rsplit("/")[-1] for name in selected["from"]]  # of --search: its values
    passes = selected.get("passes")
    cost = f"; {passes / 1000:.1f} thousand passes a seed in all" if passes else ""
    return (f"{row} is {standing(selected)}, chosen of {len(names)} rows "
            f"({'; '.join(names) if any(',' in n for n in names) else ', '.join(names)}): "
            f"{selected['rule']}{cost}.")


def protected_labels(configs: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The sentence that says which rows' training sees protected labels, and whose; [] if unknown.
    """
    seen = {row: config["uses_attributes"] for row, config in configs.items()
            if "uses_attributes" in config}
    said = [f"{SEEN[which]} by {', '.join(row for row in seen if seen[row] == which)}"
            for which in SEEN if which in seen.values()]
    text = f"Protected labels are seen in training: {'; '.join(said) or 'by no row'}."
    return [text] if seen else []
