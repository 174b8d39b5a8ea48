"""The image tables of one setting and seed: what methods train on and take gradients over."""

from __future__ import annotations

import sys
from functools import cached_property

from datasets.base import CELLS, ImageTable, Splits, concat
from datasets.loader import Loader
from datasets.subsets import balanced_counts, biased_counts, draw_cells
from utils.errors import UserError


class Data:
    """Real splits, and two synthetic sets drawn from the generated images with the run's seed.

    The balanced set serves the mask and the fine-tuning; the biased one is an independent draw
    from the same images in the real set's pattern (overlap allowed), as in the release.
    """

    def __init__(self, splits: Splits, synthetic: ImageTable | None, settings, seed: int):
        self.real, self.val, self.test = splits.train, splits.val, splits.test
        self.pool, self.settings, self.seed = synthetic, settings, seed

    def _synthetic(self) -> ImageTable:
        if self.pool is None:
            raise UserError("this method needs generated images: give --synthetic-root")
        return self.pool

    @cached_property
    def synthetic_balanced(self) -> ImageTable:
        """N_S = synthetic ratio * N_R / 4 images a cell (section 4.3)."""
        size = round(self.settings.synthetic_ratio * len(self.real) / 4) * 4
        return draw_cells(self._synthetic(), balanced_counts(size), self.seed)

    @cached_property
    def synthetic_biased(self) -> ImageTable:
        """As many images as the real set (the paper), biased like it (--synthetic-minority)."""
        size = round(self.settings.synthetic_biased_ratio * len(self.real))
        counts = biased_counts(size, self.settings.synthetic_minority)
        # Another stream than the balanced draw, or the two would share their first images.
        return draw_cells(self._synthetic(), counts, self.seed + 1_000_003)

    @cached_property
    def supplemented(self) -> ImageTable:
        """The real images followed by all balanced synthetic ones (data supplementation)."""
        return concat([self.real, self.synthetic_balanced], "real and synthetic images")

    @cached_property
    def repaired(self) -> ImageTable:
        """The real images followed by synthetic ones of the scarce cells until all are as large.

        Which real images are scarce is known from their protected labels: a strategy that trains on
        this set declares uses_attributes = "train". A cell of which fewer were generated (the demo)
        gets all there are, which is said. Raises UserError where protected labels are not known.
        """
        counts = self.real.counts()
        if set(counts) != set(CELLS):
            raise UserError(
                f"data repairing fills the scarce cells of {self.real.name}, whose protected "
                "labels are not all known; leave data_repairing and ltgc out of --methods"
            )
        available, filling = self._synthetic().counts(), {}
        for cell in CELLS:
            missing = max(counts.values()) - counts[cell]
            filling[cell] = min(missing, available[cell])
            if filling[cell] < missing:
                print(f"data repairing lacks {missing} images of cell {cell[0]}_{cell[1]} and gets "
                      f"the {filling[cell]} that were generated", file=sys.stderr)
        filling = draw_cells(self._synthetic(), filling, self.seed)
        return concat([self.real, filling], "real images, repaired with synthetic ones")

    def loader(self, table: ImageTable, *, train: bool, attributes: bool = False) -> Loader:
        """Training batches (augmented, last one dropped) or evaluation batches of a table."""
        s = self.settings
        return Loader(
            table, s.batch_size if train else s.eval_batch_size, image_size=s.image_size,
            train=train, device=s.device, seed=self.seed, drop_last=train, attributes=attributes,
            store_dir=s.store_dir, workers=s.workers, min_crop=s.min_crop,
        )
