"""What several unit tests share: one thread, generated scenes as a data set, small networks."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ray_wsss.config import EmbedConfig, SamConfig, SegmentsConfig
from ray_wsss.data.coco import read_coco
from ray_wsss.data.embeddings import EmbeddingDtype
from ray_wsss.data.scene_coco import write_scene_coco
from ray_wsss.models.classifier import Classifier, ClassifierSpec, build_classifier
from ray_wsss.models.promptable.frame import InputFrame
from ray_wsss.models.sam.build import build_sam
from ray_wsss.models.sam.model import SegmentAnything
from ray_wsss.models.sam.tiny import IMAGE_SIZE_PX
from ray_wsss.models.segmenter import SegmenterSpec
from ray_wsss.models.store import save_model
from ray_wsss.runs.manifest import Output
from ray_wsss.runs.parts import Parts
from ray_wsss.runs.prepared_images import PrepareImages
from ray_wsss.runs.read_chunks import plan_chunks
from ray_wsss.stages.embed import SamEmbedder
from ray_wsss.stages.ingest import IngestShard, begin_ingest, finish_ingest
from ray_wsss.stages.segment_everything import SegmentEverything


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Small tensors gain nothing from more, and sums stay in one order."""
    torch.set_num_threads(1)


_UNITS = {"bf16": ("avx512_bf16", "amx_bf16"), "fp16": ("avx512_fp16", "amx_fp16")}
"""Capabilities of a CPU, any of which computes in a precision; without them torch emulates it."""


@pytest.fixture(scope="session")
def skip_if_emulated() -> Callable[[str], None]:
    """Skips a test of a precision that this CPU emulates: a matrix product then takes 15 times as long."""
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}

    def skip(precision: str) -> None:
        units = _UNITS.get(precision, ())
        if units and not any(capabilities.get(unit) for unit in units):
            pytest.skip(f"this CPU emulates {precision}: it has none of {', '.join(units)}")

    return skip


@pytest.fixture(scope="session")
def tiny_sam() -> SegmentAnything:
    """SAM with the weights that ship with the package."""
    return build_sam(SamConfig(name="tiny"))


@pytest.fixture(scope="session")
def scene_dataset(tmp_path_factory) -> Path:
    """14 scenes of 64 px in 3 shards, with ground truth."""
    folder = tmp_path_factory.mktemp("scenes")
    source = read_coco(*write_scene_coco(folder, "all", range(14), size_px=64))
    rows = source.rows
    out = folder / "dataset"
    begin_ingest(out)
    ingest = IngestShard(out)
    finish_ingest(out, source, [ingest(rows[k : k + 5], k // 5) for k in (0, 5, 10)])
    return out


def small_classifier(class_names: tuple[str, ...] = ("a", "b", "c"), seed: int = 0) -> Classifier:
    spec = _classifier_spec(class_names)
    torch.manual_seed(seed)
    model = build_classifier(spec)
    # Untrained, all maps of an image look alike; larger weights spread them.
    torch.nn.init.normal_(model.to_class_maps.weight)
    return model.eval()


def _classifier_spec(class_names: tuple[str, ...]) -> ClassifierSpec:
    return ClassifierSpec(class_names=class_names, backbone="resnet_small", output_stride=8, feature_dim=16)


@pytest.fixture(scope="session")
def make_classifier() -> Callable[..., Classifier]:
    """An untrained network in eval mode."""
    return small_classifier


@pytest.fixture(scope="session")
def classifier_dir(tmp_path_factory) -> Path:
    """A saved, untrained classifier of the scenes' number of classes."""
    folder = tmp_path_factory.mktemp("classifier")
    names = tuple("abcdef")
    save_model(small_classifier(names), _classifier_spec(names), folder)
    return folder


@pytest.fixture(scope="session")
def finish_classifier(classifier_dir, tmp_path_factory) -> Callable[[dict[str, Any]], Path]:
    """Makes the untrained classifier an output of train-classifier with some settings."""

    def finish(settings: dict[str, Any]) -> Path:
        output = Output(tmp_path_factory.mktemp("trained") / "classifier", "train-classifier", settings)
        output.begin()
        shutil.copytree(classifier_dir, output.out, dirs_exist_ok=True)
        output.finish()
        return output.out

    return finish


@pytest.fixture(scope="session")
def segmenter_dir(save_segmenter, tmp_path_factory) -> Path:
    """A saved, untrained segmenter of the scenes' number of classes."""
    folder = tmp_path_factory.mktemp("segmenter")
    spec = SegmenterSpec(
        class_names=tuple("abcdef"),
        backbone="resnet_small",
        output_stride=8,
        aspp_dim=8,
        atrous_rates=(1, 2, 3),
    )
    save_segmenter(spec, folder)
    return folder


SAM = SamConfig(name="tiny", precision="fp32")


@pytest.fixture(scope="session")
def make_views(scene_dataset, tmp_path_factory) -> Callable[[EmbeddingDtype], dict[str, Path]]:
    """Makes embeddings, stored as asked, and segment maps of the scenes: folders by name."""

    def make(dtype: EmbeddingDtype) -> dict[str, Path]:
        stages = {
            "embeddings": SamEmbedder(EmbedConfig(dtype=dtype), SAM),
            "segments": SegmentEverything(SegmentsConfig(points_per_side=4, stability_score_thresh=0.8), SAM),
        }
        folders = {name: tmp_path_factory.mktemp(name) for name in stages}
        for name, stage in stages.items():
            for chunk in plan_chunks(scene_dataset):
                table, tally = stage(PrepareImages(frame=InputFrame(IMAGE_SIZE_PX))(chunk))
                Parts(folders[name], "").write(chunk, table, tally)
        return folders

    return make
