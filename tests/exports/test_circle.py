"""The circle: labels go to Label Studio, a person corrects a mask there, and the segmenter learns it.

Label Studio's own converter reads and writes the brush regions if the extra `interop` is installed; a slow
reading of the format's description does so in any case.
"""

import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from brush_reading import read_bit_by_bit
from numpy.typing import NDArray

from ray_wsss.config import AugmentConfig
from ray_wsss.data.label_studio import read_label_studio
from ray_wsss.data.reader import ShardReader
from ray_wsss.runs.curation.masks import open_hand_masks
from ray_wsss.stages.curation.against import compare_masks
from ray_wsss.stages.ingest import ingest_here
from ray_wsss.training.crops import TrainingCrops

AS_IT_IS = AugmentConfig(
    long_side_px=(56, 56), crop_px=64, flip=False, jitter_probability=0.0, grey_probability=0.0
)
CORRECTED = ("a/b.jpg", "turned.jpg", "Größe 中文.png")


@dataclass(frozen=True)
class Codec:
    """Brush regions to the values of an RGBA image and back."""

    decode: Callable[[Sequence[int]], NDArray[np.uint8]]
    encode: Callable[[NDArray[np.uint8]], Sequence[int]]


def _write_value_by_value(values: NDArray[np.uint8]) -> list[int]:
    """Runs of 16 values, none of which is repeated."""
    bits = f"{len(values):032b}{7:05b}" + "".join(f"{width - 1:04b}" for width in (3, 4, 8, 16))
    for start in range(0, len(values), 16):
        run = values[start : start + 16]
        bits += f"001{len(run) - 1:04b}" + "".join(f"{value:08b}" for value in run.tolist())
    bits += "0" * (-len(bits) % 8)
    return [int(bits[at : at + 8], 2) for at in range(0, len(bits), 8)]


@pytest.fixture(params=["reference", "label-studio-sdk"])
def codec(request: pytest.FixtureRequest) -> Codec:
    if request.param == "reference":
        return Codec(read_bit_by_bit, _write_value_by_value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        name = "label_studio_sdk.converter.brush"
        brush = pytest.importorskip(name, reason=f"{name} comes with the extra 'interop'")
    return Codec(brush.decode_rle, brush.encode_rle)


def _correct(task: dict[str, Any], codec: Codec) -> tuple[dict[str, Any], NDArray[np.uint8]]:
    """The task as Label Studio exports it after a person has erased a corner and painted a "cat" there.

    Returns:
        The task, and the label map (H, W) that it shows now, in the order of the classes of `labelled`.
    """
    (prediction,) = task["predictions"]
    height, width = (prediction["result"][0][f"original_{name}"] for name in ("height", "width"))
    corner = np.zeros((height, width), bool)
    corner[height // 2 :, width // 2 :] = True
    label_map = np.zeros((height, width), np.uint8)
    results: list[dict[str, Any]] = []
    names = ("cat", "traffic light", "Ünïcode: <x> & 'y'")
    for result in prediction["result"]:
        rgba = codec.decode(result["value"]["rle"]).reshape(height, width, 4).copy()
        rgba[corner] = 0
        label_map[rgba[..., 3] > 0] = 1 + names.index(result["value"]["brushlabels"][0])
        value = result["value"] | {"rle": [int(v) for v in codec.encode(rgba.ravel())]}
        results += [result | {"value": value, "origin": "prediction-changed"}] if rgba.any() else []
    painted = np.repeat(corner[..., None], 4, axis=2).astype(np.uint8) * 255
    label_map[corner] = 1
    value = {"format": "rle", "rle": [int(v) for v in codec.encode(painted.ravel())], "brushlabels": ["cat"]}
    results.append(results[0] | {"id": "new", "value": value, "origin": "manual"})
    annotation = {"id": 1, "result": results, "was_cancelled": False, "updated_at": "2026-01-01T00:00:00Z"}
    return {"id": 1, "data": task["data"], "annotations": [annotation], "predictions": []}, label_map


@pytest.mark.filterwarnings("ignore")
def test_a_corrected_mask_arrives_in_training(
    export: Any, labelled: Any, codec: Codec, tmp_path: Path
) -> None:
    out = export("label-studio")
    tasks = {task["data"]["ray_wsss_id"]: task for task in json.loads((out / "tasks.json").read_text())}
    corrected = {image_id: _correct(tasks[image_id], codec) for image_id in CORRECTED}
    (out / "corrected.json").write_text(json.dumps([task for task, _ in corrected.values()]))
    again = tmp_path / "again"
    assert ingest_here(read_label_studio(out / "corrected.json", out), out=again, max_errors=0).has_masks

    masks = open_hand_masks("--corrections", again, labelled.dataset)
    reader = ShardReader(labelled.dataset)
    crops = TrainingCrops(
        labelled.dataset,
        list(range(len(reader))),
        num_classes=3,
        augment=AS_IT_IS,
        seed=0,
        labels=labelled.labels,
        corrections=masks,
        correction_weight=3.0,
    )
    changed = []
    for image_id, (_, label_map) in corrected.items():
        row = reader.index_of(image_id)
        item = crops[row, row]
        assert "broken" not in item
        if max(label_map.shape) == 56:  # others are resized
            np.testing.assert_array_equal(item["pseudo_label"][item["inside"]], label_map.ravel())
        np.testing.assert_array_equal(masks.read(image_id), label_map)
        assert item["weight"] == 3
        changed.append((label_map != labelled.label_maps[image_id]).sum())
    other = reader.index_of("scan.tif")
    assert crops[other, other]["weight"] == 1
    assert len(masks) == len(CORRECTED)

    found = compare_masks(labelled.labels, again, labelled.dataset)["against"]
    pixels = sum(label_map.size for _, label_map in corrected.values())
    assert found["pixels_changed"] == pytest.approx(sum(changed) / pixels)
    assert found["images_changed"] == len(CORRECTED)
