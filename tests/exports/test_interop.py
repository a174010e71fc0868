"""Tools too large for the test extra: pip install -e ".[test,interop]" && pytest tests/exports."""

import json
import warnings
import xml.etree.ElementTree as ET
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest

from ray_wsss.data.label_studio import decode_brush


def _import(name: str):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name, reason=f"{name} comes with the extra 'interop'")


@pytest.mark.filterwarnings("ignore")
def test_voc_with_datumaro(export, labelled, names_of) -> None:
    datumaro = _import("datumaro")
    out = export("voc")
    names = {name: image_id for image_id, name in names_of(out).items()}
    found = datumaro.Dataset.import_from(str(out), "voc_segmentation")
    assert {item.id for item in found} == set(names)
    for item in found:
        seen = np.zeros_like(labelled.label_maps[names[item.id]])
        for annotation in item.annotations:
            seen[annotation.image.astype(bool)] = annotation.label
        expected = labelled.label_maps[names[item.id]]
        # Background, three classes, and then "ignored".
        np.testing.assert_array_equal(seen, np.where(expected == 255, 4, expected))


@pytest.mark.filterwarnings("ignore")
def test_coco_with_datumaro(export, labelled) -> None:
    datumaro = _import("datumaro")
    out = export("coco")
    content = json.loads((out / "annotations" / "instances_train.json").read_text())
    ids = {Path(image["file_name"]).stem: image["ray_wsss_id"] for image in content["images"]}
    found = datumaro.Dataset.import_from(str(out), "coco_instances")
    assert {item.id for item in found} == set(ids)
    for item in found:
        expected = labelled.label_maps[ids[item.id]]
        seen = np.zeros_like(expected)
        for annotation in item.annotations:
            if annotation.type.name == "mask":
                seen[annotation.image.astype(bool)] = annotation.label + 1
        np.testing.assert_array_equal(seen, np.where(expected == 255, 0, expected))


@pytest.mark.filterwarnings("ignore")
def test_label_studio_with_its_converter(export, labelled) -> None:
    brush = _import("label_studio_sdk.converter.brush")
    out = export("label-studio")
    classes = [label.get("value") for label in ET.parse(out / "config.xml").iter("Label")]
    tasks = json.loads((out / "tasks.json").read_text())
    assert len(tasks) == len(labelled.label_maps)
    for task in tasks:
        expected = labelled.label_maps[task["data"]["ray_wsss_id"]]
        (prediction,) = task["predictions"]
        seen = np.zeros_like(expected)
        for result in prediction["result"]:
            values = brush.decode_rle(result["value"]["rle"])
            shape = (result["original_height"], result["original_width"], 4)
            rgba = values.reshape(shape)
            assert set(np.unique(rgba)) <= {0, 255}
            seen[rgba[..., 3] > 0] = classes.index(result["value"]["brushlabels"][0]) + 1
        np.testing.assert_array_equal(seen, np.where(expected == 255, 0, expected))
        name = unquote(task["data"]["image"]).removeprefix("/data/local-files/?d=")
        assert (out / name).is_file()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("values", [[0, 255], [0, 1, 128, 255]], ids=["mask", "colours"])
def test_brush_regions_of_label_studio(values: list[int]) -> None:
    brush = _import("label_studio_sdk.converter.brush")
    rgba = np.random.default_rng(0).choice(np.array(values, np.uint8), (17, 23, 4))
    rgba[3:9] = 255
    packed = brush.encode_rle(rgba.ravel())
    np.testing.assert_array_equal(brush.decode_rle(packed).reshape(rgba.shape), rgba)
    np.testing.assert_array_equal(decode_brush(bytes(packed), 17, 23), rgba[..., 3] > 0)


@pytest.mark.filterwarnings("ignore")
def test_coco_with_fiftyone(export, labelled) -> None:
    """Its reader alone: a data set of FiftyOne's needs a MongoDB server."""
    coco = _import("fiftyone.utils.coco")
    out = export("coco")
    _, classes, _, images, annotations = coco.load_coco_detection_annotations(
        str(out / "annotations" / "instances_train.json")
    )
    for number, image in images.items():
        expected = labelled.label_maps[image["ray_wsss_id"]]
        height, width = expected.shape
        seen = np.zeros_like(expected)
        for entry in annotations.get(number, []):
            found = entry.to_detection((width, height), classes_map=classes, load_segmentation=True)
            left, top = (round(v) for v in np.array(found.bounding_box[:2]) * (width, height))
            rows, columns = found.mask.shape
            label = ["cat", "traffic light"].index(found.label) + 1 if found.label[0] != "Ü" else 3
            seen[top : top + rows, left : left + columns][found.mask.astype(bool)] = label
        np.testing.assert_array_equal(seen, np.where(expected == 255, 0, expected))
