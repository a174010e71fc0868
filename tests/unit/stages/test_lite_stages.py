"""The stages with the lite SAM of the package, on genuine photographs; without Ray."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import default_collate

from ray_wsss.cluster.stages.embed import run_embed
from ray_wsss.cluster.stages.label import run_label
from ray_wsss.cluster.stages.segment_everything import run_segment_everything
from ray_wsss.config import AugmentConfig, Recipe
from ray_wsss.config.overrides import override
from ray_wsss.config.presets import PRESETS
from ray_wsss.config.resources import Cluster, Resources
from ray_wsss.data.folder import read_folder
from ray_wsss.data.images import decode_mask, decode_segments
from ray_wsss.data.reader import ShardReader
from ray_wsss.errors import UserError
from ray_wsss.models.promptable.encoder import load_encoder
from ray_wsss.stages.ingest import IngestShard, begin_ingest, finish_ingest
from ray_wsss.training.cpm import Cpm
from ray_wsss.training.crops import TrainingCrops

HERE: dict[str, Any] = {"resources": Resources(actors=0), "cluster": Cluster()}
SETTINGS = {
    "sam.name": "lite",
    "label.scales": (1.0,),
    "label.tau": 0.3,
    "segments.points_per_side": 6,
    "segments.pred_iou_thresh": 0.3,
    "segments.stability_score_thresh": 0.3,
    "cpm.tau": 0.3,
    "cpm.min_distance_px": 4,
    "cpm.scales": (1.0,),
}


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return override(PRESETS["demo"], SETTINGS)


@pytest.fixture(scope="module")
def dataset(genuine_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six photographs of several shapes, 160 px long."""
    photos = genuine_data / "photos_masks_eval" / "images" / "gsc151"
    folder = tmp_path_factory.mktemp("photos")
    for name, path in zip("abcdef", sorted(photos.iterdir())[::25]):
        (folder / "images" / name).mkdir(parents=True)
        with Image.open(path) as image:
            image.thumbnail((160, 160))
            image.save(folder / "images" / name / f"{path.stem}.png")
    source = read_folder(folder / "images")
    begin_ingest(folder / "dataset")
    finish_ingest(folder / "dataset", source, [IngestShard(folder / "dataset")(source.rows, 0)])
    return folder / "dataset"


@pytest.fixture(scope="module")
def embeddings(recipe: Recipe, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("embedded") / "embeddings"
    assert run_embed(recipe, dataset=dataset, out=out, **HERE).total.images == 6
    return out


@pytest.fixture(scope="module")
def classifier(finish_classifier: Callable[[dict[str, Any]], Path]) -> Path:
    return finish_classifier({})


def rows(folder: Path, column: str) -> dict[str, Any]:
    reader = ShardReader(folder)
    return {row["image_id"]: row[column] for row in map(reader.read, range(len(reader)))}


def test_the_cache_holds_three_maps(embeddings: Path) -> None:
    shapes = load_encoder(override(PRESETS["demo"], SETTINGS).sam, torch.device("cpu")).sam.map_shapes
    assert set(map(tuple, rows(embeddings, "shape").values())) == {tuple(np.ravel(shapes).tolist())}
    noted = json.loads((embeddings / "manifest.json").read_text())["depends_on"]
    assert noted["sam.name"] == "lite"
    assert noted["sam.licence"] == "mixed sources, many without stated terms (docs/lite_sam.md)"


def test_labels_from_the_cache_are_the_live_ones(
    recipe: Recipe, dataset: Path, embeddings: Path, classifier: Path, tmp_path: Path
) -> None:
    inputs = {"dataset": dataset, "classifier": classifier}
    run_label(recipe, out=tmp_path / "live", **inputs, **HERE)
    run_label(recipe, out=tmp_path / "cached", embeddings=embeddings, **inputs, **HERE)
    live, cached = (rows(tmp_path / name, "pseudo_label") for name in ("live", "cached"))
    maps = [[decode_mask(found[key]) for key in sorted(found)] for found in (live, cached)]
    assert np.mean([(a != b).mean() for a, b in zip(*maps)]) < 5e-3
    assert 0.02 < np.mean([(a > 0).mean() for a in maps[0]]) < 0.98


@pytest.mark.parametrize("prompts", ["box", "mask"])
def test_labels_of_boxes_and_masks(
    recipe: Recipe, dataset: Path, classifier: Path, tmp_path: Path, prompts: str
) -> None:
    changed = override(recipe, {"label.prompts": prompts})
    run_label(changed, dataset=dataset, classifier=classifier, out=tmp_path / "out", **HERE)
    assert len(rows(tmp_path / "out", "pseudo_label")) == 6


def test_photographs_fall_into_segments(
    recipe: Recipe, dataset: Path, embeddings: Path, tmp_path: Path
) -> None:
    run_segment_everything(recipe, dataset=dataset, out=tmp_path / "out", embeddings=embeddings, **HERE)
    found = [decode_segments(value) for value in rows(tmp_path / "out", "segment_map").values()]
    assert np.mean([len(np.unique(segments)) for segments in found]) > 2.5


def test_thresholds_of_its_own_keep_masks(
    recipe: Recipe, dataset: Path, embeddings: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """segment_anything's would drop them all."""

    def count(out: Path, **thresholds: float | None) -> int:
        changed = override(recipe, {f"segments.{key}": value for key, value in thresholds.items()})
        run_segment_everything(changed, dataset=dataset, out=out, embeddings=embeddings, **HERE)
        return sum(len(np.unique(decode_segments(m))) - 1 for m in rows(out, "segment_map").values())

    with caplog.at_level("INFO", "ray_wsss"):
        own = count(tmp_path / "own", pred_iou_thresh=None, stability_score_thresh=None)
    assert "above a predicted IoU of 0.4 and from a stability of 0.1, which suits lite" in caplog.text
    assert own >= 2 * 6
    assert count(tmp_path / "sam", pred_iou_thresh=0.88, stability_score_thresh=0.95) == 0
    noted = json.loads((tmp_path / "own" / "manifest.json").read_text())["depends_on"]
    assert (noted["segments.pred_iou_thresh"], noted["segments.stability_score_thresh"]) == (0.4, 0.1)


def test_embeddings_of_the_tiny_sam_are_refused(
    recipe: Recipe, dataset: Path, embeddings: Path, classifier: Path, tmp_path: Path
) -> None:
    inputs = {"dataset": dataset, "classifier": classifier, "embeddings": embeddings}
    with pytest.raises(UserError, match=r"embeddings of SAM lite; expected those of SAM tiny"):
        run_label(override(recipe, {"sam.name": "tiny"}), out=tmp_path / "out", **inputs, **HERE)


@torch.no_grad()
@pytest.mark.parametrize("view", ["crop", "image"])
def test_cpm(recipe: Recipe, dataset: Path, embeddings: Path, make_classifier: Any, view: str) -> None:
    augment = AugmentConfig(long_side_px=(96, 160), crop_px=96, jitter_probability=0, grey_probability=0)
    crops = TrainingCrops(
        dataset, list(range(6)), num_classes=6, augment=augment, seed=3, embeddings=embeddings
    )
    batch = default_collate([crops[(k, k)] for k in range(3)])
    encoder = load_encoder(recipe.sam, torch.device("cpu"))
    found = Cpm(encoder, override(recipe, {"cpm.view": view}).cpm)(make_classifier(tuple("abcdef")), batch)
    assert len(found.unique()) > 1


def test_the_encoder_is_not_compiled() -> None:
    with pytest.raises(UserError, match=r"sam\.compile is on; expected auto or off"):
        override(PRESETS["demo"], {"sam.name": "lite", "sam.compile": "on"})
