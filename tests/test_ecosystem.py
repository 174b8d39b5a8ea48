"""What a user finds beside the code: README's Python, versions, container, citation."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
QUICK = ("backbone='tiny', pretrained='none', image_size=32, batch_size=8, pretrain_epochs=1, "
         "finetune_epochs=1, device='cpu', store_dir=Path('store'), ")


def photos(root: Path) -> None:
    """The folder and the synthetic images of README's example."""
    rng, rows = np.random.default_rng(0), []
    (root / "photos").mkdir()
    for number in range(120):
        glasses, man = number % 2, number // 2 % 2
        tiny.face(rng, glasses, man).save(root / "photos" / f"{number}.png")
        rows.append((f"{number}.png", glasses, ("woman", "man")[man]))
    pd.DataFrame(rows, columns=["file_name", "glasses", "gender"]).to_csv(
        root / "photos" / "metadata.csv", index=False)
    for y, a in ((0, 0), (0, 1), (1, 0), (1, 1)):
        group = root / "data/synthetic/contextual_50/glasses_gender" / f"{y}_{a}"
        group.mkdir(parents=True)
        for number in range(48):
            tiny.face(rng, y, a).save(group / f"{number}.png")


def test_the_python_of_the_readme_runs(tmp_path, monkeypatch, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert len(code.splitlines()) <= 12
    photos(tmp_path)
    monkeypatch.chdir(tmp_path)
    tiny.with_network(monkeypatch)
    assert code.count("Config(") == 1
    exec(compile(code.replace("Config(", f"Config({QUICK}"), "README.md", "exec"), {})  # noqa: S102
    assert re.search(r"^\| aim_fair ", capsys.readouterr().out, re.M)


def locked() -> dict[str, str]:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def test_the_lock_file_has_a_fitting_version_of_every_requirement():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    texts = [line.partition("#")[0].strip() for line in lines]
    wanted = [Requirement(text) for text in texts if text]
    versions = locked()
    for requirement in wanted:
        name = canonicalize_name(requirement.name)
        assert name in versions, f"{name} is missing: python .ci/lock.py > requirements.lock"
        assert requirement.specifier.contains(versions[name], prereleases=True), name
    assert len(versions) > len(wanted)  # and of what they need


def test_pre_commit_and_the_image_use_the_locked_versions():
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    (hook,) = repository["hooks"]
    assert hook["additional_dependencies"] == [f"ruff=={locked()['ruff']}"]
    image = (ROOT / "Dockerfile").read_text()
    assert "pip install --no-cache-dir -r requirements.lock" in image
    python = re.search(r"^FROM python:(\d+\.\d+)", image, re.M)[1]
    assert f"# Python {python} " in (ROOT / "requirements.lock").read_text()
    style = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["ruff"]
    assert style["target-version"] == f"py{python.replace('.', '')}"


@pytest.mark.parametrize("place", ["preferred-citation", "references"])
def test_the_citation_file_names_the_papers_of_the_readme(place):
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= cited.keys()
    paper = cited[place] if place == "preferred-citation" else cited[place][0]
    readme = " ".join(re.sub("[{}]", "", (ROOT / "README.md").read_text()).split())
    assert paper["title"] in readme and f"year = {paper['year']} " in readme
    authors = " and ".join(f"{a['family-names']}, {a['given-names']}" for a in paper["authors"])
    assert authors in readme
