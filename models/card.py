"""The README.md of an exported model: a model card in the Hugging Face hub's format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from utils.bootstrap import Interval, of_counts
from utils.metrics import GROUPS, METRICS, from_json

Record = Mapping[str, Any]  # {"config": config.json, "metrics": metrics.json} of a run, or {}
SAID = {
    "acc": "accuracy", "wst": "accuracy of the worst group",
    "std": "standard deviation of the group accuracies",
    "eo_worst": "equalized odds, larger difference", "eo_mean": "equalized odds, mean difference",
    "eod": "difference of the true positive rates", "ad": "difference of the accuracies",
}
FEW = 30


def card_of(settings: Mapping[str, Any], files: Sequence[str], run: Record,
            before: Record | None = None) -> str:
    """The card's text. settings: backbone, image_size, mean, std and, where known, target and
    protected. files: what the folder holds. run, before: of the model, and of the one that it was
    before it was repaired."""
    config = run.get("config", {})
    target = config.get("target") or settings.get("target") or "the target"
    protected = config.get("protected") or settings.get("protected") or "the protected attribute"
    parts = [
        _front(settings, config, run.get("metrics")),
        f"# {target}, measured by {protected}",
        f"A classifier of images: does an image show {target}? It is a {settings['backbone']} with "
        f"one logit, and was measured by how it treats the groups of {protected}.",
        "## Files and input", _input(settings, files),
        "## Data and training", _training(config, target, protected),
        "## Metrics", _metrics(run, before, target, protected),
        "## Intended use",
        f"Research on {target} in images like those it was trained on, and comparison of repairs. "
        "Where a decision about people hangs on it, measure it first on photographs of those "
        "people (`python -m models.evaluate`).",
        "## What was not tested",
        f"- images of another source, camera, age or region than the data set's\n"
        f"- groups other than {protected}, among them those within its two values\n"
        f"- people to whom the two values of {target} or {protected} do not apply\n"
        "- robustness to manipulated images\n"
        "- how well its scores are calibrated, unless `python -m models.evaluate` was run",
    ]
    return "\n\n".join(parts) + "\n"


def _front(settings: Mapping[str, Any], config: Mapping[str, Any], metrics: Any) -> str:
    """The YAML block that the hub reads."""
    from huggingface_hub import EvalResult, ModelCardData

    results = None
    if metrics:
        where = {"task_type": "image-classification", "dataset_type": config.get("dataset", "own"),
                 "dataset_name": config.get("dataset", "own"), "dataset_split": "test"}
        results = [EvalResult(metric_type=name, metric_name=SAID[name], metric_value=value, **where)
                   for name in ("acc", "wst", "eo_worst", "eo_mean")
                   if (value := metrics["test"][name]) is not None]
    data = ModelCardData(
        model_name=f"{settings['backbone']}-{config.get('method', 'classifier')}", license="other",
        library_name="timm" if settings["backbone"].startswith("timm:") else "pytorch",
        tags=["fairness", "image-classification"], pipeline_tag="image-classification",
        eval_results=results)
    return f"---\n{data.to_yaml()}\n---"


def _input(settings: Mapping[str, Any], files: Sequence[str]) -> str:
    side = settings["image_size"]
    lines = [
        f"- images: RGB, resized to {side}x{side}, values in [0, 1] normalised with mean "
        f"{settings['mean']} and standard deviation {settings['std']}",
        "- output: one logit; above 0 it says 1. Its sigmoid is the probability of 1.",
        "- `model.safetensors` and `config.json`: the tensors; `python -m models.predict FOLDER "
        "IMAGES --out FILE.csv`, `python -m models.evaluate FOLDER` and `train.py --start FOLDER` "
        "take this folder",
    ]
    for file in files:
        if file != "model.safetensors":
            lines.append(f"- `{file}`: a program without dependence on the training code; float "
                         f"[B, 3, {side}, {side}] in [0, 1] in, probabilities [B] out")
    return "\n".join(lines)


def _training(config: Mapping[str, Any], target: str, protected: str) -> str:
    if not config:
        return ("Not known: it was exported from a weights file alone. Say here which images and "
                "labels it was trained on.")
    start = config.get("start")
    lines = [f"- data set: {config['dataset']}; target {target}, protected attribute {protected}",
             f"- real training images: {config['size'] or 'all'}",
             f"- method: {config['method']}, seed {config['seed']}"]
    if start:
        lines.append(f"- repaired from a given checkpoint ({start})")
    if config.get("synthetic_list"):
        lines.append(f"- synthetic images: prompt set {config['prompt_set']}, list "
                     f"{config['synthetic_list']}; their labels are those of their prompts")
    uses = config.get("uses_attributes", "none")
    lines.append("- labels of the protected attribute that training saw: "
                 + {"none": "none of the real images'", "validation": "the validation images'",
                    "train": "the training images'"}[uses])
    return "\n".join(lines)


def _metrics(run: Record, before: Record | None, target: str, protected: str) -> str:
    if "metrics" not in run:
        return "Not measured: `python -m models.evaluate FOLDER` does so."
    columns = [measured(record) for record in (before, run) if record and "metrics" in record]
    titles = ["before the repair", "this model"][-len(columns):]
    rounded = run.get("config", {}).get("precision", "fp32")
    lines = [f"On the test images, computed in {rounded}, in %, with 95% intervals (bootstrap over "
             "the images, stratified by group).",
             "", f"| | {' | '.join(titles)} |", "|---" * (len(titles) + 1) + "|"]
    for name in (name for name in METRICS if name in SAID):
        lines.append(f"| {SAID[name]} | {' | '.join(_cell(column, name) for column in columns)} |")
    values = from_json(run["metrics"]["test"])
    lines += ["", f"| {target}, {protected} | images | {' | '.join(titles)} |",
              "|---" * (len(titles) + 2) + "|"]
    for y, a in GROUPS:
        cells = " | ".join(_cell(column, f"group_acc_{y}_{a}") for column in columns)
        lines.append(f"| {y}, {a} | {values['group_count'][y, a]} | {cells} |")
    if any(number < FEW for number in values["group_count"].values()):
        lines += ["", f"A group has fewer than {FEW} images: its intervals are too narrow."]
    return "\n".join(lines)


def measured(record: Record) -> dict[str, tuple[float, Interval]]:
    """{metric: (value, interval)} from a run's metrics.json alone."""
    test = from_json(record["metrics"]["test"])
    spans = of_counts([test["group_acc"][c] for c in GROUPS],
                      [test["group_count"][c] for c in GROUPS])
    values = {name: test[name] for name in METRICS} | {
        f"group_acc_{y}_{a}": test["group_acc"][y, a] for y, a in GROUPS}
    return {name: (value, spans[name]) for name, value in values.items()}


def _cell(column: Mapping[str, tuple[float, Interval]], name: str) -> str:
    value, (low, high) = column[name]
    return f"{100 * value:.2f} [{100 * low:.2f}, {100 * high:.2f}]"
