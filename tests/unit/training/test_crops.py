"""The crops: what they depend on, and what they don't."""

import io
import pickle
from pathlib import Path
from typing import cast

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from ray_wsss.config import AugmentConfig
from ray_wsss.data.coco import encode_rle
from ray_wsss.data.images import decode_mask, encode_mask
from ray_wsss.data.reader import ShardReader
from ray_wsss.data.schema import IMAGE_SCHEMA, write_table_atomically
from ray_wsss.runs.curation.masks import HandMasks
from ray_wsss.training.crops import PADDING, TrainingCrops, make_loader
from ray_wsss.training.order import IterationBatches

PLAIN = AugmentConfig(long_side_px=(40, 80), crop_px=48, jitter_probability=0.0, grey_probability=0.0)


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[Path, Path]:
    """Four pictures, white where their pseudo label is k + 1 and black elsewhere; labels in reverse order."""
    folder = tmp_path_factory.mktemp("loader")
    images, labels = [], []
    for k, (height, width) in enumerate([(50, 70), (64, 64), (90, 40), (30, 45)]):
        mask = np.zeros((height, width), np.uint8)
        mask[height // 4 : 2 * height // 3, width // 3 : width - 4] = k + 1
        images.append(
            {
                "image_id": f"image {k}",
                "image": png(np.repeat(mask[..., None] > 0, 3, axis=2).astype(np.uint8) * 255),
                "orientation": 1,
                "height": height,
                "width": width,
                "image_labels": [k] if k < 3 else [],
            }
        )
        labels.append({"image_id": f"image {k}", "pseudo_label": encode_mask(mask)})
    table = pa.Table.from_pylist(images, schema=IMAGE_SCHEMA)
    write_table_atomically(table, folder / "dataset/shards/part-00000.parquet")
    write_table_atomically(pa.Table.from_pylist(labels[::-1]), folder / "labels/part-00000.parquet")
    return folder / "dataset", folder / "labels"


def crops_of(
    folders, augment: AugmentConfig = PLAIN, with_labels: bool = True, seed: int = 0
) -> TrainingCrops:
    return TrainingCrops(
        folders[0],
        [0, 1, 2, 3],
        num_classes=5,
        augment=augment,
        seed=seed,
        labels=folders[1] if with_labels else None,
    )


def test_pseudo_labels_are_joined_and_transformed_like_the_image(folders):
    crops = crops_of(folders)
    flipped = set()
    for draw in range(40):
        row = draw % 4
        item = crops[draw, row]
        assert item["image_id"] == f"image {row}"
        image, inside, label = item["image"], item["inside"], item["pseudo_label"]
        assert isinstance(image, torch.Tensor)
        assert isinstance(inside, torch.Tensor)
        assert isinstance(label, torch.Tensor)
        assert (image.shape, inside.shape, label.shape) == ((3, 48, 48), (48, 48), (48, 48))
        white, black = (image > 0.999).all(0), (image < 0.001).all(0)
        assert white.any()
        assert (label[white] == row + 1).all()
        assert (label[black] == 0).all()
        assert torch.equal(label == 255, ~inside)
        assert (image[:, ~inside] == PADDING).all()
        labels = item["image_labels"]
        assert isinstance(labels, torch.Tensor)
        assert labels.nonzero()[:, 0].tolist() == ([row] if row < 3 else [])
        flipped.add(bool(white.any(0).nonzero().float().mean() < 23.5))
    assert flipped == {True, False}


def test_a_crop_depends_on_the_draw_alone(folders):
    augment = AugmentConfig(long_side_px=(40, 80), crop_px=48)
    first = crops_of(folders, augment, with_labels=False)
    expected = {draw: first[draw, 2]["image"] for draw in range(6)}
    torch.manual_seed(99)
    again = crops_of(folders, augment, with_labels=False)
    for draw in (5, 1, 3, 0):
        before = torch.get_rng_state()
        assert torch.equal(again[draw, 2]["image"], expected[draw])  # type: ignore[arg-type]
        assert torch.equal(torch.get_rng_state(), before)
    assert all(not torch.equal(expected[0], expected[k]) for k in range(1, 6))  # type: ignore[arg-type]
    other = crops_of(folders, augment, with_labels=False, seed=1)
    assert not torch.equal(other[0, 2]["image"], expected[0])  # type: ignore[arg-type]


def test_colour_changes_and_geometry_stays(folders):
    jitter = AugmentConfig(long_side_px=(40, 80), crop_px=48, jitter_probability=1.0)
    plain, coloured = crops_of(folders)[7, 1], crops_of(folders, jitter)[7, 1]
    assert not torch.equal(plain["image"], coloured["image"])  # type: ignore[arg-type]
    for name in ("inside", "pseudo_label"):
        assert torch.equal(plain[name], coloured[name])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "augment",
    [
        AugmentConfig(long_side_px=(32, 64), crop_px=48, jitter=(0.9, 0.9, 0.9, 0.5), jitter_probability=1.0),
        AugmentConfig(long_side_px=(32, 64), crop_px=48, jitter_probability=0.0, grey_probability=1.0),
    ],
    ids=["jitter", "grey"],
)
def test_padding_keeps_its_colour(folders, augment):
    """Whatever becomes of the image's colours, normalised padding stays about 0."""
    crops, padded = crops_of(folders, augment), 0
    for draw in range(40):
        item = crops[draw, draw % 4]
        image, inside = item["image"], item["inside"]
        assert isinstance(image, torch.Tensor)
        assert isinstance(inside, torch.Tensor)
        padding = image[:, ~inside]
        assert (padding == PADDING).all()
        padded += padding.numel() > 0
    assert padded > 20


def test_loader_collates_in_order_and_crops_can_be_sent_to_workers(folders):
    crops = pickle.loads(pickle.dumps(crops_of(folders)))
    batches = IterationBatches([0] * 4, batch_size=2, seed=0, start=0, stop=3, rank=0, world_size=1)
    loaded = list(make_loader(crops, batches, workers=0, pin_memory=False))
    for batch, keys in zip(loaded, batches):
        assert batch["image"].shape == (2, 3, 48, 48)
        assert batch["pseudo_label"].dtype == torch.uint8
        assert batch["image_id"] == [f"image {row}" for _, row in keys]
        assert torch.equal(batch["image"][1], crops[keys[1]]["image"])
        assert torch.equal(batch["plan"].image_labels, batch["image_labels"])
    assert len(loaded) == 3


@pytest.mark.parametrize("cached_groups", [8, 5])
def test_a_batch_has_images_from_all_over_a_sorted_data_set(tmp_path, cached_groups):
    rows = [
        {
            "image_id": f"{k // 8}-{k}",
            "image": png(np.zeros((40, 40, 3), np.uint8)),
            "orientation": 1,
            "height": 40,
            "width": 40,
            "image_labels": [k // 8],
        }
        for k in range(64)
    ]
    table = pa.Table.from_pylist(rows, schema=IMAGE_SCHEMA)
    write_table_atomically(table, tmp_path / "shards/part-00000.parquet", rows_per_group=8)
    crops = TrainingCrops(tmp_path, list(range(64)), num_classes=8, augment=PLAIN, seed=0)
    crops.reader.cache_bytes = cached_groups * crops.reader.piece_bytes
    assert crops.window == cached_groups
    batches = crops.batches(batch_size=8, start=0, stop=8)
    loaded = list(make_loader(crops, batches, workers=0, pin_memory=False))
    assert sorted(image_id for batch in loaded for image_id in batch["image_id"]) == sorted(
        row["image_id"] for row in rows
    )
    kinds = [len({image_id[0] for image_id in batch["image_id"]}) for batch in loaded]
    assert min(kinds) >= 2
    assert np.mean(kinds) > 2.9


def test_the_window_fits_the_caches_of_all_readers(folders):
    crops = crops_of(folders)
    assert crops.labels is not None
    crops.labels.cache_bytes = 3 * crops.labels.piece_bytes
    assert crops.window == 3
    crops.reader.cache_bytes = 2 * crops.reader.piece_bytes
    assert crops.window == 2
    crops.reader.cache_bytes = 1
    assert crops.window == 1


@pytest.mark.parametrize("corrected", [False, True])
def test_pixels_are_weighed_by_the_score_of_their_mask(folders, tmp_path, corrected):
    """Where masks of a class overlap, the higher score counts; where another class has won, none of them."""
    reader = ShardReader(folders[1])
    rows = [reader.read(k, ["image_id", "pseudo_label"]) for k in range(4)]
    for row in rows:
        k = int(row["image_id"].split()[1])
        label = decode_mask(row["pseudo_label"], 5)
        left = np.zeros(label.shape, bool)
        left[:, : label.shape[1] // 2] = True
        row["segments"] = [
            {"class_index": k, "rle": encode_rle(mask)["counts"], "sam_score": score, "cam_mean": mean}
            for mask, score, mean in [(left, 0.9, 1.0), (label > 0, 0.8, 0.5), (~left, 0.2, None)]
        ] + [{"class_index": 4, "rle": encode_rle(left)["counts"], "sam_score": 0.1, "cam_mean": 0.1}]
    write_table_atomically(pa.Table.from_pylist(rows), tmp_path / "part-00000.parquet")
    crops = crops_of((folders[0], tmp_path))
    crops.by_score = True
    if corrected:
        crops.corrections = cast(HandMasks, ByHand())
    for draw in range(12):
        item = crops[draw, draw % 4]
        weight, label = item["pixel_weight"], item["pseudo_label"]
        assert (weight[label == 255] == 0).all()
        assert (weight[label == 0] == 1).all()
        on_mask = weight[(label > 0) & (label < 255)].unique()
        expected = [1.0] if corrected else [0.4, 0.9]
        assert set(on_mask.tolist()) <= set(torch.tensor(expected).tolist())
        assert len(on_mask) > 0


class ByHand:
    """Corrected masks of all images: the whole image has label 2."""

    def __contains__(self, image_id: str) -> bool:
        return True

    def read(self, image_id: str) -> np.ndarray:
        height, width = [(50, 70), (64, 64), (90, 40), (30, 45)][int(image_id.split()[1])]
        return np.full((height, width), 2, np.uint8)
