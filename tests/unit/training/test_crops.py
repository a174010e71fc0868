"""The order of training and the crops: what they depend on, and what they don't."""

import io
import pickle
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from ray_wsss.config import AugmentConfig
from ray_wsss.data.images import encode_mask
from ray_wsss.data.schema import IMAGE_SCHEMA, write_table_atomically
from ray_wsss.ops.losses import IGNORE_LABEL
from ray_wsss.training.crops import PADDING, IterationBatches, TrainingCrops, global_order, make_loader

PLAIN = AugmentConfig(long_side_px=(40, 80), crop_px=48, jitter_probability=0.0, grey_probability=0.0)


def order(rank: int = 0, world_size: int = 1, start: int = 0, seed: int = 0) -> list[list[tuple[int, int]]]:
    batches = IterationBatches(
        [0] * 10, batch_size=4, seed=seed, start=start, stop=10, rank=rank, world_size=world_size
    )
    assert len(list(batches)) == len(batches)
    return list(batches)


@pytest.mark.parametrize("world_size", [2, 4])
def test_global_batches_do_not_depend_on_the_number_of_workers(world_size):
    ranks = [order(rank, world_size) for rank in range(world_size)]
    assert [list(chain(*parts)) for parts in zip(*ranks)] == order()


@pytest.mark.parametrize("start", [1, 4, 9])
def test_starting_later_skips_iterations(start):
    assert order(start=start) == order()[start:]
    assert order(1, 2, start=start) == order(1, 2)[start:]


def test_every_image_once_per_epoch_in_another_order():
    draws, rows = zip(*chain(*order()))
    assert draws == tuple(range(40))
    epochs = [rows[k : k + 10] for k in range(0, 40, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len(set(epochs)) == 4
    assert order(seed=1) != order()


def test_large_data_sets_are_shuffled_by_row_groups():
    groups = [image // 8 for image in range(400)]
    order = global_order(groups, seed=3, epoch=1, window=4)
    assert sorted(order) == list(range(400))
    windows = [{groups[image] for image in order[at : at + 32]} for at in range(0, 400, 32)]
    assert [len(near) for near in windows] == [4] * 12 + [2]  # each group is read once
    assert len(set.union(*windows)) == 50
    first = [groups[image] for image in order[:32]]
    assert first != sorted(first)
    assert max(windows[0]) - min(windows[0]) > 4  # from all over the data set
    assert order != global_order(groups, seed=3, epoch=2, window=4)
    assert order == global_order(groups, seed=3, epoch=1, window=4)


def test_a_small_data_set_is_shuffled_as_a_whole():
    groups = [image // 100 for image in range(400)]
    order = global_order(groups, seed=0, epoch=0, window=4)
    assert len({groups[image] for image in order[:40]}) == 4
    assert order == global_order([0] * 400, seed=0, epoch=0)


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
        assert torch.equal(label == IGNORE_LABEL, ~inside)
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
