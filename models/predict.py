"""Scores of photographs by any classifier: a folder or files in, one csv out.

    python -m models.predict results/demo/aim_fair/seed100 photographs/ --out predictions.csv

The csv has file_name, score (the probability of 1) and prediction (1 where it is above 0.5). What
cannot be read is listed and left out.
"""

from __future__ import annotations

import csv
import io
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

if not __package__:  # started by its path: python models/predict.py
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from models.evaluate import add_network_flags, device_of, network_of
from utils.errors import UserError, exit_cleanly, is_systems, reason
from utils.files import check_replaceable, has_header, write_atomic
from utils.imports import heavy_imports
from utils.options import ArgumentParser, path

HEADER = ("file_name", "score", "prediction")
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif")


def parser() -> ArgumentParser:
    p = ArgumentParser(prog="python -m models.predict", description=__doc__.split("\n")[0])
    p.add_argument("checkpoint", type=path, metavar="CHECKPOINT",
                   help="classifier.pt, state dict, safetensors, or the folder of a run")
    p.add_argument("images", nargs="+", type=path, metavar="IMAGES",
                   help="files, and folders with all images below them")
    p.add_argument("--out", type=path, required=True, metavar="FILE.csv")
    add_network_flags(p)
    return p


def images_of(given: Sequence[Path]) -> dict[str, Path]:
    """{name: file}, in order: a folder's images named from there on, a file as it was given.

    Several folders' names begin with the folder as given. Raises UserError for what does not exist
    and where there is no image at all.
    """
    found: dict[str, Path] = {}
    for place in given:
        if place.is_dir():
            files = sorted(file for file in place.rglob("*")
                           if file.suffix.lower() in SUFFIXES and file.is_file()
                           and not file.name.startswith("."))
            start = place if len(given) == 1 else Path()
            found |= {file.relative_to(start).as_posix() if len(given) == 1 else file.as_posix():
                      file for file in files}
        elif place.is_file():
            found[place.as_posix()] = place
        else:
            raise UserError(f"{place} does not exist: give image files or folders")
    if not found:
        raise UserError(f"{given[0]} holds no images ({', '.join(SUFFIXES)}): give another folder")
    return found


def prepared(file: Path, size: int) -> np.ndarray | str:
    """uint8 [size, size, 3] as train.py shows a test image to a network, or why there is none."""
    from datasets.augment import resample_cpu
    from datasets.decoding import decode

    try:
        image = np.asarray(decode(file))
    except Exception as error:  # noqa: BLE001 - what Pillow's decoders raise varies
        if is_systems(error) and not isinstance(error, PermissionError):
            raise
        return getattr(error, "strerror", None) or reason(error)
    whole = np.array([[0, 0, *image.shape[:2]]])
    return resample_cpu([image], whole, np.zeros(1, bool), size)[0]


def scores_of(
    classifier, images: dict[str, Path], *, device: str, batch_size: int, workers: int
) -> Iterator[tuple[str, float | str]]:
    """(name, probability of 1) of every image in order, the reason where it cannot be read."""
    import torch

    from datasets.augment import normalise, standardisation, standardised
    from utils.progress import progress

    standard = standardisation(classifier.mean, classifier.std, torch.device(device))

    @torch.inference_mode()
    def probabilities(pixels: list[np.ndarray]) -> list[float]:
        x = normalise(torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).to(device))
        if standard is not None:
            x = standardised(x, standard)
        return classifier.logits(x).double().sigmoid().tolist()

    names, bar = list(images), progress(total=len(images), desc="predict", unit="img", leave=False)
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque = deque()
        for start in range(0, len(names) + batch_size, batch_size):  # one batch is read ahead
            batch = names[start : start + batch_size]
            waiting.append((batch, [pool.submit(prepared, images[name], classifier.image_size)
                                    for name in batch]))
            if len(waiting) < 2:
                continue
            batch, read = waiting.popleft()
            read = [future.result() for future in read]
            pixels = [image for image in read if not isinstance(image, str)]
            score = iter(probabilities(pixels) if pixels else ())
            for name, image in zip(batch, read, strict=True):
                yield name, image if isinstance(image, str) else next(score)
            bar.update(len(batch))
    bar.close()


@exit_cleanly
def main(arguments: list[str] | None = None) -> None:
    args = parser().parse_args(arguments)
    check_replaceable("--out", args.out, has_header(",".join(HEADER)))
    images = images_of(args.images)
    with heavy_imports():
        import torch  # noqa: F401 - its import may be interrupted
    device = device_of(args.device)
    classifier = network_of(args.checkpoint, args, device)
    text, unreadable = io.StringIO(), []
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HEADER)
    written = 0
    for name, score in scores_of(classifier, images, device=device, batch_size=args.batch_size,
                                 workers=args.workers):
        if isinstance(score, str):
            unreadable.append(f"{name}: {score}")
        elif not np.isfinite(score):
            raise UserError(f"{args.checkpoint} gives NaN: check --backbone, --mean and --std")
        else:
            writer.writerow((name, score, int(score > 0.5)))
            written += 1
    if not written:
        raise UserError(f"{args.images[0]}: none of {len(images)} images can be read "
                        f"({unreadable[0]}): give other files")
    write_atomic(args.out, text.getvalue())
    for line in unreadable:
        print(f"unreadable: {line}", file=sys.stderr)
    print(f"{args.out}: {written} images" + (f", {len(unreadable)} unreadable" if unreadable
                                             else ""))


if __name__ == "__main__":
    main()
