"""Download a data set from a source that works today, and check it before it says done.

    python -m datasets.download celeba --root data/celeba --accept

Several sources are tried in turn. What was received is kept until the data set is whole: the same
command goes on. Every data set has terms of use, which are printed; --accept says yes to them.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

if not __package__:  # started by its path: python datasets/download.py
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from datasets import check, ci_mnist, sources, unpack
from datasets.base import bad_images, named
from datasets.sources import SourceError
from utils.errors import UserError, exit_cleanly
from utils.options import ArgumentParser, path

MNIST_MIRRORS = ("https://ossci-datasets.s3.amazonaws.com/mnist",
                 "https://storage.googleapis.com/cvdf-datasets/mnist")
MNIST_MD5 = {
    "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
    "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
    "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
}
MNIST_SIZE = (60000, 10000)  # training and test digits
CELEBA_DRIVE = {  # torchvision's ids and md5
    "img_align_celeba.zip": ("0B7EVK8r0v71pZjFTYXZWM3FlRnM", "00d2c5bc6d35e252742224ab0c1e8fcb"),
    "list_attr_celeba.txt": ("0B7EVK8r0v71pblRyaVFSWGxPY0U", "75e246fa4810816ffd6ee81facbd244c"),
    "list_eval_partition.txt": (
        "0B7EVK8r0v71pY0NSMzRuSXJEVkk", "d32c9cbf5e040fd4025c592c306e6668"),
}
FAIRFACE_DRIVE = {  # of its page; the padding is 0.25
    "fairface-img-margin025-trainval.zip": "1Z1RqRo0_JiavaZw2yzZG6WETdZQ8qX86",
    "fairface_label_train.csv": "1i1L3Yqwaio7YSOCj7ftgk8ZZchPG7dmH",
    "fairface_label_val.csv": "1wOdja-ezstMEp81tX1a-EYkFebev4h7D",
}
TERMS = {
    "celeba": "CelebA is for non-commercial research only; its images must not be copied, sold or "
    "shared, beyond use within one site of one organisation: "
    "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html",
    "utkface": "UTKFace is for non-commercial research only; its images belong to their owners: "
    "https://susanqq.github.io/UTKFace/",
    "fairface": "FairFace is under CC BY 4.0: name its authors where you use it: "
    "https://github.com/joojs/fairface",
    "mnist": "MNIST is under CC BY-SA 3.0, by Yann LeCun, Corinna Cortes and Christopher Burges",
}


class Source(NamedTuple):
    """get(raw, out): receive into the folder `raw`, which is kept, and lay out in `out`, which is
    new; raises SourceError."""

    name: str
    get: Callable[[Path, Path], None]


def by_part(files: Sequence[Path], parts: dict[str, str]) -> dict[str, list[Path]]:
    """{part: files} by how their names begin. Raises SourceError for a part without a file."""
    found = {part: [file for file in files if file.name.startswith(f"{begin}-")]
             for part, begin in parts.items()}
    if lacking := [part for part, here in found.items() if not here]:
        raise SourceError(f"the mirror has no files of {', '.join(lacking)}")
    return found


def celeba_kaggle(raw: Path, out: Path) -> None:
    unpack.archive(sources.kaggle("jessicali9530/celeba-dataset", raw), out)


def celeba_drive(raw: Path, out: Path) -> None:
    files = {name: sources.drive(number, name, raw, md5)
             for name, (number, md5) in CELEBA_DRIVE.items()}
    unpack.archive(files.pop("img_align_celeba.zip"), out)
    for name, file in files.items():
        shutil.copyfile(file, out / name)


def celeba_hub(raw: Path, out: Path) -> None:
    files = sources.hub("flwrlabs/celeba", ["img_align+identity+attr/*.parquet"], raw)
    unpack.celeba(by_part(files, {"train": "train", "val": "valid", "test": "test"}), out)


def utkface_hub(raw: Path, out: Path) -> None:
    (file,) = sources.hub("py97/UTKFace-Cropped", ["UTKFace.tar.gz"], raw)
    unpack.archive(file, out)


def utkface_kaggle(raw: Path, out: Path) -> None:
    unpack.archive(sources.kaggle("jangedoo/utkface-new", raw), raw / "all")
    unpack.move_into(unpack.first_folder(raw / "all", "UTKFace", "*.jpg"), out / "UTKFace")


def fairface_hub(raw: Path, out: Path) -> None:
    files = sources.hub("HuggingFaceM4/FairFace", ["0.25/*.parquet"], raw)
    unpack.fairface(by_part(files, {"train": "train", "val": "validation"}), out)


def fairface_hub_2(raw: Path, out: Path) -> None:
    files = sources.hub("ryanramos/fairface", ["margin025/*.parquet"], raw)
    unpack.fairface(by_part(files, {"train": "train", "val": "val"}), out)


def fairface_drive(raw: Path, out: Path) -> None:
    files = {name: sources.drive(number, name, raw) for name, number in FAIRFACE_DRIVE.items()}
    unpack.archive(files.pop("fairface-img-margin025-trainval.zip"), out)
    for name, file in files.items():
        shutil.copyfile(file, out / name)


def mnist_from(mirror: str) -> Callable[[Path, Path], None]:
    def get(raw: Path, out: Path) -> None:
        out.mkdir()
        for name, md5 in MNIST_MD5.items():
            shutil.copyfile(sources.fetch(f"{mirror}/{name}", raw / name, md5=md5), out / name)

    return get


def mnist_hub(raw: Path, out: Path) -> None:
    files = sources.hub("ylecun/mnist", ["mnist/*.parquet"], raw)
    unpack.mnist(by_part(files, {"train": "train", "t10k": "test"}), out)


def sources_of(dataset: str) -> list[Source]:
    """Where a data set is to be had, the best first."""
    return {
        "celeba": [Source("kaggle", celeba_kaggle), Source("drive", celeba_drive),
                   Source("hub", celeba_hub)],
        "utkface": [Source("hub", utkface_hub), Source("kaggle", utkface_kaggle)],
        "fairface": [Source("hub", fairface_hub), Source("hub-2", fairface_hub_2),
                     Source("drive", fairface_drive)],
        "mnist": [*(Source(f"mirror-{number}", mnist_from(mirror))
                    for number, mirror in enumerate(MNIST_MIRRORS, 1)), Source("hub", mnist_hub)],
    }[dataset]


def differences(dataset: str, root: Path) -> list[str]:
    """What `datasets.check` finds in a folder, one line each; unusable data are one line, too."""
    try:
        if dataset == "mnist":
            splits = ci_mnist.read(root, "size")
            found = (len(splits.train) + len(splits.val), len(splits.test))
            return [] if found == MNIST_SIZE else [f"{found} digits, expected {MNIST_SIZE}"]
        found, paths = {
            "celeba": lambda: check.check_celeba(root, (), official=True),
            "utkface": lambda: check.check_utkface(root),
            "fairface": lambda: check.check_fairface(root),
        }[dataset]()
        return found + [
            f"{len(files)} images {kind}: {named([os.path.basename(file) for file in files], 5)}"
            for kind, files in bad_images(paths).items()
        ]
    except UserError as error:
        return [str(error)]


def obtain(dataset: str, root: Path, chosen: Sequence[Source]) -> None:
    """Fill root from the first source whose data pass the check; UserError naming what each said.

    What is received lies in root/.download until then.
    """
    work, said = root / ".download", []
    for source in chosen:
        raw, out = work / source.name, work / "unpacked"
        shutil.rmtree(out, ignore_errors=True)
        raw.mkdir(parents=True, exist_ok=True)
        print(f"{dataset} from {source.name}", flush=True)
        try:
            source.get(raw, out)
            if found := differences(dataset, out):
                shutil.rmtree(raw)  # it is whole and not what it should be
                raise SourceError(f"it is not {dataset} as published: {'; '.join(found[:3])}")
        except SourceError as error:
            said.append(f"{source.name}: {error}")
            print(f"  {error}", file=sys.stderr)
            continue
        unpack.move_into(out, root)
        shutil.rmtree(work)
        return
    raise UserError(f"no source gives {dataset}: {'; '.join(said)}; start the same command again "
                    "later, which goes on from what was received, or copy the data by hand")


def accept(terms: str, accepted: bool) -> None:
    """Print the terms of use and have them accepted. Raises UserError where they are not."""
    print(terms, flush=True)
    if accepted:
        return
    if not sys.stdin.isatty():
        raise UserError("the terms of use are not accepted: read them and give --accept")
    if input("Do you accept these terms? [yes/no] ").strip().lower() not in ("y", "yes"):
        raise UserError("the terms of use are not accepted: nothing was downloaded; give --accept "
                        "to accept them")


@exit_cleanly
def main(arguments: list[str] | None = None) -> None:
    parser = ArgumentParser(prog="python -m datasets.download",
                            description=__doc__.split("\n")[0])
    parser.add_argument("dataset", choices=tuple(TERMS))
    parser.add_argument("--root", type=path, required=True, help="the folder that is filled")
    parser.add_argument("--accept", action="store_true", help="accept the terms of use")
    parser.add_argument("--source", help="only this one: kaggle, hub, ... (see what it prints)")
    args = parser.parse_args(arguments)
    chosen = sources_of(args.dataset)
    if args.source is not None:
        names = [source.name for source in chosen]
        if args.source not in names:
            raise UserError(f"--source {args.source} is unknown; choose from {', '.join(names)}")
        chosen = [source for source in chosen if source.name == args.source]
    accept(TERMS[args.dataset], args.accept)
    args.root.mkdir(parents=True, exist_ok=True)
    if others := [entry.name for entry in sorted(args.root.iterdir()) if entry.name != ".download"]:
        found = differences(args.dataset, args.root)
        if found:
            raise UserError(f"--root {args.root} holds {named(others, 3)}, which is not "
                            f"{args.dataset} ({found[0]}); give another folder or empty it")
        print(f"{args.root}: {args.dataset} is there, checked")
        return
    obtain(args.dataset, args.root, chosen)
    print(f"{args.root}: {args.dataset}, checked")


if __name__ == "__main__":
    main()
