"""Names of masks, what is still to be done, and reading images as ingest does."""

import json
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ray_wsss.config import PredictConfig
from ray_wsss.data.folder import list_images
from ray_wsss.data.images import apply_orientation, voc_palette
from ray_wsss.data.scenes import make_scene
from ray_wsss.errors import UserError
from ray_wsss.stages.predict import Predictor
from ray_wsss.stages.predict_folder import FolderPredictor, MaskFolder, PrepareFiles, name_masks

SCENE = make_scene(1, 60, 80).image[:40, :60]


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        ("a.jpg b.PNG d/a.jpg", "a.png b.png d/a.png"),
        ("v1.2.jpg", "v1.2.png"),
        ("a.jpg a.png b.jpg", "a.jpg.png a.png.png b.png"),
        ("a.jpg d/a.png", "a.png d/a.png"),
        ("a.jpg.bmp", "a.jpg.png"),
        ("a.jpg a.jpg.bmp a.png", "a.jpg.png a.jpg.bmp.png a.png.png"),
        ("a.jpg a.png a.png.bmp a.png.png", "a.jpg.png a.png.png a.png.bmp.png a.png.png.png"),
    ],
)
def test_names(images, masks):
    assert name_masks(images.split()) == dict(zip(images.split(), masks.split()))


def test_list_images(tmp_path):
    for name in ("b.jpg", "d/e/a.PNG", "d/.hidden/x.jpg", ".x.jpg", "notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "gone.jpg").symlink_to("nowhere")
    listing = list_images(tmp_path)
    assert list(listing.images) == ["b.jpg", "d/e/a.PNG", "gone.jpg"]
    assert listing.passed_over == {".txt": 1, "hidden": 2}
    with pytest.raises(UserError, match="has no images"):
        list_images(tmp_path / "folder.jpg")
    with pytest.raises(UserError, match="is not a folder"):
        list_images(tmp_path / "b.jpg")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, segmenter_dir, orientation):
    """The mask lies on the image as viewers show it."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(SCENE).save(tmp_path / "a.png", exif=exif)
    config = PredictConfig()
    images = PrepareFiles(tmp_path, config.max_side_px)(["a.png"])
    tally, failed = FolderPredictor(segmenter_dir, config, MaskFolder(tmp_path / "out"))(["a.png"], images)
    assert (tally.images, failed) == (1, [])
    with Image.open(tmp_path / "out" / "masks" / "a.png") as mask:
        found = np.asarray(mask)
    upright = apply_orientation(SCENE, orientation)
    assert found.shape == upright.shape[:2] == ((40, 60) if orientation < 5 else (60, 40))
    np.testing.assert_array_equal(found, Predictor.load(segmenter_dir, config)(upright))


def test_a_pass_holds_as_many_images_as_its_pixels_allow(tmp_path, segmenter_dir, monkeypatch):
    names = [f"{k}.png" for k in range(4)]
    for name in names:
        Image.fromarray(SCENE).save(tmp_path / name)
    images = PrepareFiles(tmp_path, 1024)(names)
    found, passes = {}, {}
    predict = Predictor.predict

    def watch(self, pixels, image_hws):
        passes.setdefault(self.config, []).append(len(pixels))
        return predict(self, pixels, image_hws)

    monkeypatch.setattr(Predictor, "predict", watch)
    # Scale 2, and 7 labels of 8 bytes against 1 KiB.
    two = int(2 * SCENE[..., 0].size * (4 + 7 / 128)) + 1
    for budget, size in ((10**9, 1), (1, 4), (two, 4)):
        config = PredictConfig(scales=(1.0, 2.0), batch_size=size, max_pixels_per_pass=budget)
        folder = MaskFolder(tmp_path / str(budget))
        FolderPredictor(segmenter_dir, config, folder)(names, images)
        found[budget] = [folder.mask(name).read_bytes() for name in names]
    assert list(passes.values()) == [[1] * 4, [1] * 4, [2, 2]]
    assert found[1] == found[10**9]


def test_what_cannot_be_read_has_a_reason(tmp_path):
    Image.fromarray(SCENE).save(tmp_path / "good.jpg")
    whole = (tmp_path / "good.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[:-200])
    (tmp_path / "text.jpg").write_text("no picture")
    (tmp_path / "gone.jpg").symlink_to("nowhere")
    name = os.fsdecode(b"caf\xe9.jpg")  # no UTF-8
    (tmp_path / name).write_bytes(whole)
    images = PrepareFiles(tmp_path, 32)(["cut.jpg", "text.jpg", "gone.jpg", "good.jpg", name])
    reasons = [image.error or "" for image in images]
    for reason, start in zip(reasons, ("truncated JPEG", "not an image", "no such file: gone.jpg")):
        assert reason.startswith(start)
    assert reasons[3:] == ["", ""]
    assert images[3].image_hw == (40, 60)
    assert images[3].pixels is not None
    assert images[3].pixels.shape == (21, 32, 3)
    assert images[4].image_id == "caf\\udce9.jpg"


def test_overlays_have_the_masks_colours(tmp_path):
    folder = MaskFolder(tmp_path, overlays=True)
    label_map = np.zeros((80, 120), np.uint8)
    label_map[:, 60:] = 3
    folder.write("d/a.jpg.png", label_map, np.full((40, 60, 3), 100, np.uint8))
    with Image.open(tmp_path / "masks" / "d" / "a.jpg.png") as mask:
        assert (mask.mode, mask.size) == ("P", (120, 80))
        assert (np.asarray(mask) == label_map).all()
    with Image.open(tmp_path / "overlays" / "d" / "a.jpg.jpg") as overlay:
        pixels = np.asarray(overlay).astype(int)
    assert pixels.shape == (40, 60, 3)
    assert np.abs(pixels[20, 15] - 75).max() < 6
    assert np.abs(pixels[20, 45] - (0.35 * 75 + 0.65 * voc_palette()[3])).max() < 6


def test_classes_and_errors(tmp_path):
    folder = MaskFolder(tmp_path)
    folder.write_classes(["cat", "hôtel"])
    assert json.loads((tmp_path / "classes.json").read_text()) == [
        {"index": 0, "name": "background", "colour": [0, 0, 0]},
        {"index": 1, "name": "cat", "colour": [128, 0, 0]},
        {"index": 2, "name": "hôtel", "colour": [0, 128, 0]},
    ]
    folder.write_errors([("b", "why"), ("a", "because")])
    rows = [{"image": "a", "reason": "because"}, {"image": "b", "reason": "why"}]
    assert pq.read_table(tmp_path / "errors.parquet").to_pylist() == rows
    folder.write_errors([])
    assert not (tmp_path / "errors.parquet").exists()


def _make(root: Path, *names: str) -> dict[str, str]:
    for name in names:
        (root / name).touch()
    return name_masks(list(list_images(root).images))


def test_what_is_missing(tmp_path):
    root = tmp_path / "in"
    root.mkdir()
    masks = _make(root, "a.jpg", "b.jpg", "c.jpg")
    folder = MaskFolder(tmp_path / "out")
    folder.claim(masks)
    label_map, pixels = np.zeros((2, 2), np.uint8), np.zeros((2, 2, 3), np.uint8)
    folder.write("a.png", label_map, pixels)
    folder.write("b.png", label_map, pixels)
    assert folder.missing(root, masks) == [("c.jpg", "c.png")]
    later = folder.mask("b.png").stat().st_mtime + 10
    os.utime(root / "b.jpg", (later, later))  # changed since
    assert folder.missing(root, masks) == [("b.jpg", "b.png"), ("c.jpg", "c.png")]
    assert len(MaskFolder(tmp_path / "out", overlays=True).missing(root, masks)) == 3


def test_a_mask_is_never_taken_for_another_images(tmp_path):
    root, folder = tmp_path / "in", MaskFolder(tmp_path / "out")
    root.mkdir()
    label_map, pixels = np.zeros((2, 2), np.uint8), np.zeros((2, 2, 3), np.uint8)
    masks = _make(root, "a.jpg", "b.jpg", "c.jpg.bmp", "gone.jpg")
    folder.claim(masks)
    for mask in masks.values():
        folder.write(mask, label_map, pixels)
    (root / "gone.jpg").unlink()
    masks = _make(root, "a.png", "c.jpg", "c.png")
    folder.claim(masks)
    # a.png was a.jpg's and is nobody's now; c.jpg.png was c.jpg.bmp's and is c.jpg's now.
    left = {path.name for path in (tmp_path / "out" / "masks").iterdir()}
    assert left == {"b.png", "gone.png"}
    assert [image for image, _ in folder.missing(root, masks)] == [
        *("a.jpg", "a.png", "c.jpg", "c.jpg.bmp", "c.png")
    ]
    noted = json.loads((tmp_path / "out" / "masks.json").read_text())
    assert noted == masks | {"gone.jpg": "gone.png"}
