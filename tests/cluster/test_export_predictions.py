"""What predict writes, exported: from the folder it was made from, and from a data set of the same."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ray_wsss.cli import main

pytestmark = pytest.mark.usefixtures("ray_cluster")


def test_predictions_as_voc(
    write_source: Callable[[Path, int], tuple[Path, Path]],
    segmenter: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source, _ = write_source(tmp_path / "source", 3)
    images, masks = tmp_path / "images", tmp_path / "masks"
    (images / "cat").mkdir(parents=True)
    for path in source.glob("*.jpg"):
        path.rename(images / "cat" / path.name)
    (images / "cat" / "text.jpg").write_text("no image")
    run = ["predict", "--preset", "demo", "--segmenter", segmenter, "--images", images, "--out", masks]
    assert main([str(word) for word in run]) == 0
    ingest = ["ingest", "folder", "--root", images, "--out", tmp_path / "dataset"]
    assert main([str(word) for word in ingest]) == 0
    for kind, given, errors in (("folder", images, "1 error"), ("dataset", tmp_path / "dataset", "0 errors")):
        out = tmp_path / f"voc_{kind}"
        export = ["export", "voc", "--predictions", masks, "--images", given, "--out", out]
        capsys.readouterr()
        assert main([str(word) for word in export]) == 0
        told = capsys.readouterr().out
        assert f", {errors}\n" in told
        assert ("cat/text.jpg: not an image" in told) == (errors == "1 error")
        listed = (out / "ImageSets" / "Segmentation" / "train.txt").read_text().split()
        assert len(listed) == 3
        for name in listed:
            mask = masks / "masks" / "cat" / f"{name.removeprefix('cat_')}.png"
            with Image.open(mask) as ours, Image.open(out / "SegmentationClass" / f"{name}.png") as theirs:
                np.testing.assert_array_equal(np.array(ours), np.array(theirs))
            picture = out / "JPEGImages" / f"{name}.jpg"
            assert picture.read_bytes() == (images / "cat" / f"{name[4:]}.jpg").read_bytes()
