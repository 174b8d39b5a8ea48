"""The image tables of one setting and seed, and the training sets that strategies are made of."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

from datasets.base import ImageTable, Splits
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
        """As many images as the real set, biased like it (--synthetic-minority)."""
        counts = biased_counts(len(self.real), self.settings.synthetic_minority)
        # Another stream than the balanced draw, or the two would share their first images.
        return draw_cells(self._synthetic(), counts, self.seed + 1_000_003)

    def loader(self, table: ImageTable, *, train: bool, attributes: bool = False) -> Loader:
        """Training batches (augmented, last one dropped) or evaluation batches of a table."""
        s = self.settings
        return Loader(
            table, s.batch_size if train else s.eval_batch_size, image_size=s.image_size,
            train=train, device=s.device, seed=self.seed, drop_last=train, attributes=attributes,
            store_dir=s.store_dir, workers=s.workers,
        )


# What a strategy trains on in its last stage.
TRAINING_SETS: dict[str, Callable[[Data], ImageTable]] = {
    "real": lambda data: data.real,
    "synthetic": lambda data: data.synthetic_balanced,
}
