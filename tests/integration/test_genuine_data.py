"""Genuine images through the command line; skipped where they are absent."""

from pathlib import Path

import pytest

from ray_wsss.cli import main

pytestmark = pytest.mark.usefixtures("ray_cluster")


def test_coco_val(genuine_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    coco = genuine_data / "coco"
    flags = ["--images", str(coco / "images"), "--annotations", str(coco / "annotations/instances_val.json")]
    assert main(["ingest", "coco", *flags, "--out", str(tmp_path / "val")]) == 0
    assert capsys.readouterr().out == (
        "185 images, 0 without labels (unknown), 1 with none of the classes, 0 errors\n"
        "1,777 objects with a box or points (label --prompts-from annotations)\n"
        "460 images in the folder passed over, since the source does not list them\n"
    )


def test_voc(genuine_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--root", str(genuine_data / "voc/VOC2012"), "--split", "train"]
    assert main(["ingest", "voc", *flags, "--out", str(tmp_path / "voc")]) == 0
    warning, counts = capsys.readouterr().out.splitlines()
    assert warning.startswith("no image has 'bicycle', 'bird', 'boat'")
    assert counts == "4 images, 0 without labels (unknown), 0 with none of the classes, 0 errors"
