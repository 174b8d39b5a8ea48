"""Readers given anything: whatever a file holds, a value comes back or a UserError naming it."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from datasets import celeba, synthetic
from datasets.base import GROUPS, UNFIT, bad_images
from datasets.decoding import decode
from prompts import check
from prompts.instruction import STARTS_WITH
from stable_diffusion import manifest
from stable_diffusion.prompt_set import read_prompts
from utils.errors import UserError

quick = settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5)
    | st.sampled_from(["celeba", "plain", "contextual_25", "Smiling", "Male", STARTS_WITH]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(["set", "cells", "target", "protected", "dataset", "source", "0_0", "0_1",
                         "1_0", "1_1", "starts_with"]), inner, max_size=9),
)  # fmt: skip


@quick
@given(json_values)
def test_any_json_as_a_prompt_file(tmp_path, value):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(value))
    assert isinstance(check.check_file(path), list)
    try:
        prompts = read_prompts(path)
    except UserError as error:
        assert str(path) in str(error)
    else:
        assert all(prompts.groups[group] for group in GROUPS)


HEAD = b"2\nSmiling Male\n000001.jpg 1 -1\n000002.jpg -1 1\n"
ROWS = b"path,y,a,prompt\n0_0/00000.png,0,0,a\n0_1/00000.png,0,1,b\n"


def spoiled(whole: bytes):
    """`whole` with some bytes replaced by others, or cut, or nothing of it."""
    edits = st.lists(
        st.tuples(st.integers(0, len(whole) - 1), st.binary(max_size=4)), min_size=1, max_size=3
    )

    def apply(places):
        data = whole
        for place, new in places:
            data = data[:place] + new + data[place + len(new) :]
        return data

    return edits.map(apply) | st.integers(0, len(whole)).map(lambda n: whole[:n]) | st.binary()


@quick
@given(spoiled(HEAD), st.sampled_from([".txt", ".csv"]))
def test_any_bytes_as_an_attribute_list(tmp_path, data, ending):
    path = tmp_path / f"list{ending}"
    path.write_bytes(data)
    for reader in (celeba.read_attributes, celeba.read_partition):
        try:
            table = reader(path)
        except UserError as error:
            assert str(path) in str(error)
        else:
            assert table.index.is_unique
            assert np.isin(table.to_numpy(), (-1, 0, 1, 2)).all()


@quick
@given(spoiled(ROWS))
def test_any_bytes_as_a_manifest(tmp_path, data):
    path = tmp_path / "manifest.csv"
    path.write_bytes(data)
    for reader in (synthetic.read_list, manifest.read_table):
        try:
            rows = reader(path)
        except UserError as error:
            assert str(path) in str(error)
        else:
            assert rows
            paths = [row["path"] if isinstance(row, dict) else row[0] for row in rows]
            assert len(set(paths)) == len(paths)
            assert all((tmp_path / name).resolve().is_relative_to(tmp_path.resolve())
                       for name in paths)  # fmt: skip


def picture(kind: str) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 10, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "WEBP"])
@quick
@given(data=st.data())
def test_any_bytes_as_an_image(tmp_path, kind, data):
    path = tmp_path / "a.jpg"
    path.write_bytes(data.draw(spoiled(picture(kind))))
    bad = bad_images([str(path)])
    assert bad in ({}, *({cause: [str(path)]} for cause in ("empty", "unreadable", UNFIT)))
    try:
        image = decode(path)
    except Exception as error:  # noqa: BLE001 - whatever Pillow raises, the store names the file
        assert not isinstance(error, MemoryError | RecursionError)
    else:
        assert image.mode == "RGB"
        assert bad == {} or not Path(path).stat().st_size
