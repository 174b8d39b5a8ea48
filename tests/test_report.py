"""The report holds what the saved runs hold, and can be read on a laptop and on a phone."""

import base64
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from datasets.base import GROUPS, ImageTable
from utils.files import write_json
from utils.metrics import fairness_metrics, to_json
from utils.reporting.__main__ import main
from utils.reporting.report import write_contact_sheets, write_report

COUNTS = (10, 20, 20, 10)  # test images of each group
RIGHT = {"erm": (8, 20, 19, 6), "aim_fair": (9, 18, 18, 8)}
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)


def save_run(folder, method, seed):
    y, a = (np.repeat([group[i] for group in GROUPS], COUNTS) for i in (0, 1))
    right = [np.arange(n) < c for n, c in zip(COUNTS, RIGHT[method], strict=True)]
    prediction = np.where(np.concatenate(right), y, 1 - y)
    write_json(folder / "metrics.json", {"test": to_json(fairness_metrics(prediction, y, a))})
    config = {"dataset": "celeba", "target": "Smiling", "protected": "Male", "size": 24,
              "note": "<b>&", "fingerprint": "0" * 12, "notes": [], "seed": seed, "method": method,
              "environment": {"command": ["train.py", "--seeds", "1", "2"], "commit": None}}
    stages = {"pretrain": [2.0 + seed, 4.0]}
    if method == "aim_fair":
        stages["finetune"] = [300.0, 300.0]
        config["finetune_lr"] = 0.06
        names = [f"layer{i}.0.conv{j}.weight" for i in (1, 2, 3, 4) for j in range(1, 12)]
        write_json(folder / "mask.json", {"tensors": dict.fromkeys(names, True)})
    write_json(folder / "config.json", config)
    rows = [{"stage": stage, "epoch": i, "loss": 1 / i, "val_acc": 0.5, "seconds": s}
            for stage, seconds in stages.items() for i, s in enumerate(seconds, 1)]
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def save_faces(folder, count=40):
    folder.mkdir()
    for i in range(count):
        Image.new("RGB", (30, 40), (6 * i, 0, 255 * (i % 2))).save(folder / f"{i}.png")
    number = np.arange(count)
    return ImageTable("faces", [str(folder / f"{i}.png") for i in number], number % 2, number * 0)


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results") / "tiny"
    for method in RIGHT:
        for seed in (1, 2):
            save_run(folder / method / f"seed{seed}", method, seed)
    faces = save_faces(folder.parent / "faces")
    write_contact_sheets(folder, {"real": faces, "generated": None})
    main([str(folder)])
    return folder


class Page(HTMLParser):
    """Every element's attributes by tag, the text, and whether each element is closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.text, self.groups = [], {}, "", []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.setdefault(tag, []).append(dict(attributes))
        if tag not in ("meta", "img"):
            self.open.append(tag)
        if tag == "tr":
            self.groups.append([])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("th", "td"):
            self.groups[-1].append(data)
        self.text += data


def test_the_page_is_whole_and_asks_for_nothing(setting):
    text = (setting / "report.html").read_text()
    page = Page(text)
    assert page.open == []
    assert "script" not in page.tags
    assert "link" not in page.tags
    assert not re.search(r'(?:src|href)="(?!data:|#)|url\(|@import', text)
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.tags[
        "meta"
    ]
    sections = {section["id"] for section in page.tags["section"]}
    assert sections == {"tables", "figures", "images", "cost", "settings"}
    assert {link["href"] for link in page.tags["a"]} == {f"#{name}" for name in sections}


def test_the_tables_are_those_of_the_summary(setting):
    groups = Page((setting / "report.html").read_text()).groups
    lines = [line for line in (setting / "summary.md").read_text().splitlines() if "|" in line]
    expected = [[group.strip() for group in line.strip("|").split("|")] for line in lines]
    expected = [row for row in expected if not re.fullmatch("-+", row[0])]
    assert len(expected) >= 6
    assert groups[: len(expected)] == expected


def test_pictures_are_the_saved_ones(setting):
    pictures = Page((setting / "report.html").read_text()).tags["img"]
    bytes_held = {base64.b64decode(p["src"].split(",")[1]): p for p in pictures}
    files = [*setting.glob("figures/*.png"), *setting.glob("contact_sheets/*.jpg")]
    assert {path.read_bytes() for path in files} == set(bytes_held)
    assert len(files) == 3 + 2  # curves, accuracy against EO, one mask; two groups of faces
    for data, picture in bytes_held.items():
        size = Image.open(io.BytesIO(data)).size
        assert (int(picture["width"]), int(picture["height"])) == size
        assert picture["alt"]


def test_the_overlap_of_masks_is_among_the_tables(setting):
    groups = Page((setting / "report.html").read_text()).groups
    assert ["aim_fair", "2", "44 of 44", "1.00", "1.00", "44", "0"] in groups


def test_a_contact_sheet_shows_its_group_from_first_to_last(setting):
    assert {path.name for path in setting.glob("contact_sheets/*")} == {
        "real_0_0.jpg", "real_1_0.jpg",
    }  # fmt: skip
    sheet = Image.open(setting / "contact_sheets" / "real_1_0.jpg")
    assert sheet.size == (8 * 72, 2 * 72)
    for corner, number in (((30, 30), 1), ((8 * 72 - 30, 72 + 30), 39)):
        assert np.abs(np.subtract(sheet.getpixel(corner), (6 * number, 0, 255))).max() < 12


def test_cost_counts_a_shared_stage_once(setting):
    page = Page((setting / "report.html").read_text())
    rows = {tuple(row[:2]): row[2:] for row in page.groups}
    # seconds: pre-training 3 + 4 and 4 + 4, fine-tuning 600 for each of two seeds
    assert rows["erm", "pretrain"] == ["2", "2", "4.00", "7.5 s"]
    assert rows["aim_fair", "pretrain"] == ["2", "2", "4.00", "7.5 s"]
    assert rows["aim_fair", "finetune"] == ["2", "2", "300.00", "10.0 min"]
    assert rows["aim_fair", "in all"] == ["10.1 min"]  # and empty groups
    assert ("erm", "in all") not in rows
    assert "all of it took 20.2 min" in page.text


def test_settings_in_common_and_by_method(setting):
    text = (setting / "report.html").read_text()
    page = Page(text)
    assert ["size", "24"] in page.groups
    assert ["note", "<b>&"] in page.groups
    assert "<b>" not in text
    assert ["method", "finetune_lr"] in page.groups
    assert ["aim_fair", "0.06"] in page.groups
    assert ["erm", "–"] in page.groups
    assert ["command", "train.py --seeds 1 2"] in page.groups
    assert "fingerprint" not in page.text
    assert "Smiling on celeba, fair about Male: 2 methods, 2 seeds." in page.text


def test_an_unfinished_setting_says_so(tmp_path, capsys):
    save_run(tmp_path / "erm" / "seed1", "erm", 1)
    (tmp_path / "erm" / "seed2").mkdir()  # still running, nothing logged
    page = Page(write_report(tmp_path).read_text())
    assert "not counted: erm/seed2" in page.text
    assert "img" not in page.tags
    for wrong in (tmp_path / "none", tmp_path / "erm"):
        with pytest.raises(SystemExit) as stop:
            main([str(wrong)])
        assert stop.value.code == 2
        assert str(wrong) in capsys.readouterr().err


MEASURE = """<!DOCTYPE html><body><iframe id="frame" style="width:%dpx;height:800px;border:0">
</iframe><script>
const frame = document.getElementById("frame");
frame.onload = () => {
  const page = frame.contentDocument, root = page.documentElement;
  const boxes = [...page.querySelectorAll("h1, h2, h3, p, nav, .scroll, .sheets img, figcaption")];
  document.body.textContent = JSON.stringify({
    across: root.scrollWidth, wide: root.clientWidth,
    right: Math.max(...boxes.map(box => box.getBoundingClientRect().right)),
    text: Math.min(...[...page.querySelectorAll("p, td, figcaption")].map(
      box => parseFloat(page.defaultView.getComputedStyle(box).fontSize))),
    images: [...page.images].map(image => image.complete && image.naturalWidth > 0),
    plots: [...page.querySelectorAll(".plot img")].map(image => image.clientWidth),
    mended: page.compatMode,
  });
};
frame.srcdoc = %s;
</script></body>"""


@pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome is installed")
@pytest.mark.parametrize(("width", "plot"), [(360, 576), (1280, 800)])
def test_it_reads_well_in_a_browser(setting, tmp_path, width, plot):
    """Nothing sticks out sideways, letters are legible, every picture is decoded and large."""
    text = json.dumps((setting / "report.html").read_text()).replace("</", "<\\/")
    probe = tmp_path / "probe.html"
    probe.write_text(MEASURE % (width, text))
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    flags += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=10000"]
    flags += ["--window-size=1400,900"]
    shown = subprocess.run(
        [BROWSER, *flags, "--dump-dom", probe.as_uri()],
        capture_output=True, text=True, timeout=900, check=True,
    ).stdout  # fmt: skip
    found = json.loads(re.search(r"\{.*\}", shown)[0])
    assert found["wide"] >= width - 20  # a scroll bar may take some of it
    assert found["across"] <= found["wide"]
    assert found["right"] <= found["wide"]
    assert found["text"] >= 14
    assert found["mended"] == "CSS1Compat"
    assert found["images"] == [True] * 5
    assert min(found["plots"]) >= plot
