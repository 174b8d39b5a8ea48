"""Does Delta1 or Delta2 predict what updating a tensor does? Each tensor fine-tuned alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from scipy.special import expit

from models.backbones import parameter_names
from models.finetune import freeze_all_but
from models.method import Method, fit_stage, pretrained
from models.selection import REAL_AND_SYNTHETIC, SENSITIVE_TO_BIAS
from models.strategies import SYNTHETIC, FineTuning
from utils.blocks import block_of, blocks_of
from utils.engine import fit, logits_of
from utils.files import write_json
from utils.metrics import GROUPS, fairness_metrics, to_json
from utils.records import read_log, read_record
from utils.run import Run


class TensorEffect(FineTuning):
    """The ERM model with one tensor, one block or everything updated, and how each differs.

    AIM-Fair's argument is that a tensor of low Delta1 can be updated on synthetic images without
    loss of accuracy and one of high Delta2 with a gain in fairness. Here every tensor, and every
    block, is fine-tuned alone from the ERM model by the fine-tuning's recipe, all others frozen;
    effects.json holds what each does on the validation images, beside the two differences and the
    tensor's size. utils.reporting.figures_effects correlates them.

    The validation images' group labels are used to measure, for nothing else: no epoch is chosen,
    the last one counts. Batch norm's statistics follow the synthetic images, but for --batch-norm
    freeze, in every one alike; what they do alone, at a rate of 0, is measured too. The trained
    model, which the test set measures, is the one of which everything was updated. A tensor is one
    stage: an interrupted run resumes with the next.
    """

    stages = ("effects",)
    uses_attributes = "validation"
    training_set = SYNTHETIC
    sets = tuple(name for name in REAL_AND_SYNTHETIC if name not in ("real", SYNTHETIC))

    @classmethod
    def finetunes(cls) -> bool:
        return True

    @classmethod
    def effects(cls, run: Run) -> Method:
        model = pretrained(run)
        start = {name: value.clone() for name, value in model.state_dict().items()}
        names = parameter_names(model)

        def make(**changed: float) -> Method:
            return cls(model, replace(cls.recipe_of(run.config), **changed),
                       autocast=run.config.autocast, compiled=run.config.compile,
                       frozen_batch_norm=run.config.batch_norm == "freeze")

        before = measured(make(), run)
        with run.stage("differences", "mask.json") as stage:
            path = stage.folder / "mask.json"
            if not stage.finished:
                write_json(path, SENSITIVE_TO_BIAS.mask(model, run))
        mask = read_record(path, "tensors", "delta1", "delta2", "passes")
        run.passes += mask["passes"]
        sizes = {name: value.numel() for name, value in model.named_parameters()}
        freeze_all_but(model, {names[-1]})
        statistics = cls._update("nothing", lambda: make(lr=0.0), run)
        tensors, blocks = {}, {}
        for found, parts in ((tensors, {name: {name} for name in names}),
                             (blocks, {block: {n for n in names if block_of(n) == block}
                                       for block in blocks_of(names)})):
            for part, selected in parts.items():
                model.load_state_dict(start)
                freeze_all_but(model, selected)
                found[part] = cls._update(part, make, run)
        model.load_state_dict(start)
        freeze_all_but(model, set(names))
        trained = fit_stage(run, "finetune", make, lambda: cls.batches(run), None)
        write_json(run.folder / "effects.json", {
            "erm": before, "statistics": statistics, "all": measured(trained, run),
            "blocks": blocks, "tensors": {
                name: effect | {"delta1": mask["delta1"][name], "delta2": mask["delta2"][name],
                                "elements": sizes[name], "selected": mask["tensors"][name]}
                for name, effect in tensors.items()},
        })
        return trained

    @classmethod
    def _update(cls, part: str, make, run: Run) -> dict:
        """The stage that fine-tunes one part of the network; what the model then does."""
        with run.stage(f"update_{part}", "effect.json") as stage:
            path = stage.folder / "effect.json"
            if not stage.finished:
                torch.manual_seed(run.seed)
                method = make()
                fit(method, cls.batches(run), None, stage.folder, f"update {part}", (),
                    run.config.checkpoint_seconds)
                passes = sum(row["passes"] for row in read_log(stage.folder / "log.jsonl"))
                write_json(path, {"metrics": measured(method, run), "passes": passes})
        (stage.folder / "model.pt").unlink(missing_ok=True)  # one of each tensor would be many
        record = read_record(path, "metrics", "passes")
        run.passes += record["passes"]
        return record["metrics"]


def measured(method: Method, run: Run) -> dict:
    """Accuracy and fairness of a model on the validation images, as JSON.

    One tensor may change hardly a prediction. So two figures see every change: `loss`, the
    cross-entropy, and `soft_eo`, EO (worst case) of the probabilities in the predictions' place,
    max over y of |mean P(1 | x) of (y, 0) - mean P(1 | x) of (y, 1)|.
    """
    val = run.data.val
    logits = logits_of(method, run.data.loader(val, train=False)).astype(np.float64)
    probability = expit(logits)
    members = {(y, a): probability[(val.y == y) & (val.a == a)] for y, a in GROUPS}
    means = {group: each.mean() if len(each) else np.nan for group, each in members.items()}
    return to_json(fairness_metrics((logits > 0).astype(np.int64), val.y, val.a)) | {
        "loss": float(np.logaddexp(0, np.where(val.y == 1, -logits, logits)).mean()),
        "soft_eo": float(np.max([abs(means[y, 0] - means[y, 1]) for y in (0, 1)])),
    }
