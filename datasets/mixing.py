"""The tables of one setting and seed: what methods train on and take gradients over."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import cached_property

import numpy as np

from datasets.array_loader import ArrayLoader
from datasets.base import GROUPS, ArrayTable, ImageTable, Splits, Table, concat
from datasets.loader import Loader
from datasets.subsets import balanced_counts, biased_counts, draw_groups
from utils.errors import UserError


class Data:
    """Real splits, and two synthetic sets drawn from the generated images with the run's seed.

    The balanced set serves the mask and the fine-tuning; the biased one is an independent draw
    from the same images in the real set's pattern (overlap allowed), as in the release.
    """

    def __init__(
        self, splits: Splits, synthetic: ImageTable | None, config, seed: int, *,
        edited: ImageTable | None = None, digests: Mapping[str, str] | None = None,
    ):
        """config: the flags of the data and the loader (utils.config.Config). edited: edits of the
        training images (datasets/edits.py). digests: of the tables, by "real", "val", "test",
        "synthetic" and "edited"."""
        self.real, self.val, self.test = splits.train, splits.val, splits.test
        self.pool, self.config, self.seed = synthetic, config, seed
        self.edited, self.digests = edited, dict(digests or {})

    def seen_by(self, uses_attributes: str) -> Data:
        """The data with the real images' protected labels that "none", "validation" or "train"
        grants; a = -1 elsewhere, in the tables and so in every batch made of them.

        "train" grants all: who has them for training has them for validation. The generated images
        keep theirs, which are those of their prompts and nobody's annotation.
        """
        if uses_attributes == "train":
            return self
        val = self.val
        if val is not None and uses_attributes == "none":
            val = val.withheld()
        splits = Splits(self.real.withheld(), val, self.test.withheld())
        return Data(splits, self.pool, self.config, self.seed, edited=self.edited,
                    digests=self.digests)

    def _synthetic(self) -> ImageTable:
        if self.pool is None:
            raise UserError("this method needs generated images: give --synthetic-root")
        return self.pool

    @property
    def pools(self) -> list[ImageTable]:
        """Tables of whose images all training sets consist: decoded once for every seed."""
        return [self.real] if self.pool is None else [self.real, self.pool]

    @cached_property
    def synthetic_balanced(self) -> ImageTable:
        """N_S = synthetic ratio * N_R / 4 images a group (section 4.3)."""
        size = round(self.config.synthetic_ratio * len(self.real) / 4) * 4
        return draw_groups(self._synthetic(), balanced_counts(size), self.seed)

    @cached_property
    def synthetic_biased(self) -> ImageTable:
        """--synthetic-biased-ratio images per real one (the paper: 1), by --synthetic-minority."""
        size = round(self.config.synthetic_biased_ratio * len(self.real))
        counts = biased_counts(size, self.config.synthetic_minority)
        # Another stream than the balanced draw, or the two would share their first images.
        return draw_groups(self._synthetic(), counts, self.seed + 1_000_003)

    @cached_property
    def supplemented(self) -> ImageTable:
        """The real images followed by all balanced synthetic ones (data supplementation)."""
        return concat([self.real, self.synthetic_balanced], "real and synthetic images")

    @cached_property
    def repaired(self) -> ImageTable:
        """The real images followed by synthetic ones of the minority groups until all are as large.

        The minority is known from the protected labels: a strategy that trains on this set declares
        uses_attributes = "train". A group of which fewer were generated (the demo)
        gets all there are, which is said. Raises UserError where protected labels are not known.
        """
        counts = self.real.counts()
        if set(counts) != set(GROUPS):
            raise UserError(
                f"data repairing fills the minority groups of {self.real.name}, whose protected "
                "labels are not all known; leave data_repairing and ltgc out of --methods"
            )
        available, filling = self._synthetic().counts(), {}
        for group in GROUPS:
            missing = max(counts.values()) - counts[group]
            filling[group] = min(missing, available[group])
            if filling[group] < missing:
                print(f"data repairing lacks {missing} images of group {group[0]}_{group[1]} and "
                      f"gets the {filling[group]} that were generated", file=sys.stderr)
        filling = draw_groups(self._synthetic(), filling, self.seed)
        return concat([self.real, filling], "real images, repaired with synthetic ones")

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Of one sample in memory; None for images, which have any size."""
        return self.real.x.shape[1:] if isinstance(self.real, ArrayTable) else None

    def loader(
        self, table: Table, *, train: bool, attributes: bool = False,
        groups: np.ndarray | None = None,
    ) -> Loader | ArrayLoader:
        """Training batches (images augmented, their last batch dropped) or evaluation batches.

        attributes: with the protected labels of the table, as far as `seen_by` left them there.
        groups: int [N], of which training batches hold evenly many.
        """
        c = self.config
        if isinstance(table, ArrayTable):
            return ArrayLoader(
                table, c.batch_size if train else c.eval_batch_size, train=train,
                device=c.device, seed=self.seed, attributes=attributes, groups=groups,
            )
        return Loader(
            table, c.batch_size if train else c.eval_batch_size, image_size=c.image_size,
            train=train, device=c.device, seed=self.seed, drop_last=train, attributes=attributes,
            store_dir=c.store_dir, workers=c.workers, min_crop=c.min_crop, pools=self.pools,
            groups=groups, mean=c.mean, std=c.std,
        )
