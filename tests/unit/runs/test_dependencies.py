"""What a result depends on, and embeddings that are another SAM's."""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from ray_wsss.config import Recipe, SamConfig
from ray_wsss.config.overrides import override
from ray_wsss.config.presets import PRESETS
from ray_wsss.data.schema import DatasetMetadata
from ray_wsss.errors import UserError
from ray_wsss.models.classifier import ClassifierSpec, build_classifier
from ray_wsss.models.sam.tiny import tiny_checkpoint
from ray_wsss.models.store import save_model
from ray_wsss.runs.dependencies import (
    check_classes,
    dataset_settings,
    embeddings_settings,
    noted_sam,
    sam_settings,
    settings_of,
    settled,
    with_absolute_paths,
)
from ray_wsss.runs.manifest import Output, dataset_hash

DEMO = PRESETS["demo"]


def with_sam(sam: SamConfig) -> Recipe:
    return replace(DEMO, sam=sam)


@pytest.fixture
def embeddings(tmp_path, scene_dataset) -> Output:
    depends_on = settings_of(DEMO, "embed") | sam_settings(DEMO) | dataset_settings(scene_dataset)
    output = Output(tmp_path / "embeddings", "embed", depends_on)
    output.begin()
    output.finish()
    return output


def test_embeddings_of_the_same_sam(embeddings):
    settings = embeddings_settings(embeddings.out, DEMO)
    assert settings["embeddings.dtype"] == "fp16"
    same = with_sam(SamConfig(name="tiny", checkpoint=str(tiny_checkpoint())))
    assert embeddings_settings(embeddings.out, same) == settings


def test_embeddings_of_another_sam_are_refused_by_name(embeddings, tmp_path):
    other = with_sam(SamConfig(name="vit_b", checkpoint=str(tiny_checkpoint())))
    with pytest.raises(UserError, match=r"embeddings of SAM tiny; expected those of SAM vit_b \(sam\.name\)"):
        embeddings_settings(embeddings.out, other)
    weights = load_file(tiny_checkpoint())
    first = next(iter(weights))
    save_file(weights | {first: weights[first] + 1}, tmp_path / "other.safetensors")
    other = with_sam(SamConfig(name="tiny", checkpoint=str(tmp_path / "other.safetensors")))
    with pytest.raises(UserError, match="SAM tiny with other weights"):
        embeddings_settings(embeddings.out, other)


def test_unfinished_embeddings_are_refused(embeddings):
    embeddings.reopen()
    with pytest.raises(UserError, match="is unfinished: run the embed command"):
        embeddings_settings(embeddings.out, DEMO)


def test_the_precision_of_sams_encoder_decides():
    """Where the encoder runs, with auto settled; fp32 is not noted, as before there was a choice."""
    fp32, bf16, auto = (override(DEMO, {"sam.precision": name}) for name in ("fp32", "bf16", "auto"))
    on_cpu = sam_settings(fp32, "cpu")
    assert on_cpu == sam_settings(auto) == sam_settings(bf16) == sam_settings(fp32, "cuda")
    assert sam_settings(settled(auto, "bf16"), "cuda") == sam_settings(bf16, "cpu")
    assert sam_settings(bf16, "cpu") == on_cpu | {"sam.precision": "bf16"}
    assert sam_settings(settled(auto, "fp32"), "cuda") == on_cpu


def test_the_sam_that_an_output_was_begun_with(tmp_path):
    assert noted_sam(tmp_path, "embed") == {}
    for precision in ("fp32", "bf16"):
        out, settings = tmp_path / precision, sam_settings(settled(DEMO, precision), "cuda")
        Output(out, "embed", settings | {"embed.dtype": "fp16"}).begin()
        assert noted_sam(out, "embed") == settings
        assert noted_sam(out, "label") == {}


def test_the_heads_learning_rate_is_noted_unless_it_is_the_backbones():
    """Trainings of version 0.1, which had no such setting, can be resumed."""
    assert "segmenter.head_lr_factor" not in settings_of(DEMO, "segmenter")
    assert "classifier.head_lr_factor" not in settings_of(Recipe(), "classifier")
    assert settings_of(Recipe(), "segmenter")["segmenter.head_lr_factor"] == 10


def test_embeddings_made_in_bf16(embeddings, tmp_path):
    bf16 = Output(tmp_path / "bf16", "embed", {**embeddings.depends_on, "sam.precision": "bf16"})
    bf16.begin()
    bf16.finish()
    settings = embeddings_settings(embeddings.out, DEMO)
    assert embeddings_settings(bf16.out, DEMO) == settings | {"embeddings.precision": "bf16"}


def test_batch_sizes_of_labelling_decide_nothing():
    changes = {"label.batch_size": 3, "label.cam_batch_size": 2, "sam.decode_batch_size": 1}
    assert settings_of(override(DEMO, changes), "label", "sam") == settings_of(DEMO, "label", "sam")
    assert "label.tau" in settings_of(DEMO, "label")
    assert settings_of(override(DEMO, {"label.tau": 0.9}), "label") != settings_of(DEMO, "label")


@pytest.mark.parametrize("section", ["classifier", "segmenter"])
def test_the_batch_size_of_training_decides(section):
    ours = settings_of(DEMO, section)
    incidental = {f"{section}.{name}": 7 for name in ("loader_workers", "log_every", "checkpoint_every")}
    assert settings_of(override(DEMO, incidental), section) == ours
    other = settings_of(override(DEMO, {f"{section}.batch_size": 7}), section)
    assert {key for key in ours if ours[key] != other[key]} == {f"{section}.batch_size"}


def test_settings_are_those_of_the_sections_asked_for():
    assert {key.split(".")[0] for key in settings_of(DEMO, "label", "segments")} == {"label", "segments"}


def test_paths_become_absolute(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    paths = {
        "sam.checkpoint": "sam.safetensors",
        "classifier.backbone_checkpoint": "../backbone.pth",
        "segmenter.backbone_checkpoint": "/weights/backbone.pth",
    }
    recipe = with_absolute_paths(override(DEMO, paths))
    assert recipe.sam.checkpoint == str(Path(tmp_path) / "sam.safetensors")
    backbone = recipe.classifier.backbone_checkpoint
    assert backbone is not None
    assert Path(backbone).is_absolute()
    assert Path(backbone).resolve() == Path(tmp_path).parent.resolve() / "backbone.pth"
    assert recipe.segmenter.backbone_checkpoint == "/weights/backbone.pth"
    assert with_absolute_paths(DEMO) == DEMO


def test_what_is_no_output_of_embed_is_refused(embeddings, scene_dataset, tmp_path):
    with pytest.raises(UserError, match="is not an output of embed"):
        embeddings_settings(scene_dataset, DEMO)
    labels = Output(tmp_path / "labels", "label", embeddings.depends_on)
    labels.begin()
    labels.finish()
    with pytest.raises(UserError, match="holds the output of label; expected that of embed"):
        embeddings_settings(labels.out, DEMO)


def test_how_embeddings_are_stored(embeddings, scene_dataset, tmp_path):
    small = Output(tmp_path / "small", "embed", {**embeddings.depends_on, "embed.dtype": "int8"})
    small.begin()
    small.finish()
    assert embeddings_settings(small.out, DEMO) == {
        "embeddings.dtype": "int8",
        "embeddings.dataset.sha256": dataset_hash(scene_dataset),
    }


def test_a_data_set_is_known_by_path_and_content(scene_dataset, tmp_path, monkeypatch):
    monkeypatch.chdir(scene_dataset.parent)
    assert dataset_settings(Path(scene_dataset.name)) == {
        "dataset": str(scene_dataset),
        "dataset.sha256": dataset_hash(scene_dataset),
    }
    with pytest.raises(UserError, match="is not a finished data set"):
        dataset_settings(tmp_path)


DECISIVE = {
    "label.scales": (1.0,),
    "sam.name": "vit_b",
    "classifier.seed": 1,
    "classifier.loss_weights.cpm": 0.5,
    "segmenter.augment.flip": False,
    "embed.dtype": "int8",
}


@pytest.mark.parametrize("key", DECISIVE)
def test_what_decides_is_kept(key):
    sections = ("label", "sam", "classifier", "segmenter", "embed")
    before, after = (settings_of(r, *sections) for r in (DEMO, override(DEMO, {key: DECISIVE[key]})))
    assert [k for k in after if after[k] != before[k]] == [key]


def test_classes_of_network_and_data_set(scene_dataset, tmp_path):
    ours = DatasetMetadata.load(scene_dataset).class_names
    for name, class_names in (("same", ours), ("turned", ours[::-1]), ("other", ("a", "b"))):
        spec = ClassifierSpec(
            class_names=class_names, backbone="resnet_small", output_stride=8, feature_dim=16
        )
        output = Output(tmp_path / name, "train-classifier", {})
        output.begin()
        save_model(build_classifier(spec), spec, output.out)
        output.finish()
    check_classes(scene_dataset, tmp_path / "same", "classifier")
    with pytest.raises(UserError, match=rf"\b{len(ours)} in common; expected the same in the same order"):
        check_classes(scene_dataset, tmp_path / "turned", "classifier")
    with pytest.raises(UserError, match=r"other has 2 \(a, b, \.\.\.\), none in common"):
        check_classes(scene_dataset, tmp_path / "other", "classifier")
    with pytest.raises(UserError, match="is not an output of train-segmenter"):
        check_classes(scene_dataset, tmp_path, "segmenter")


def test_the_batch_size_of_sams_encoder_decides_nothing():
    assert settings_of(override(DEMO, {"sam.encode_batch_size": 1}), "sam") == settings_of(DEMO, "sam")


@pytest.mark.parametrize("section", ["classifier", "segmenter"])
def test_a_backbones_file_decides_by_its_content(section, tmp_path):
    key, number = f"{section}.backbone_checkpoint", iter(range(99))

    def settings(path: Path, content: str) -> dict[str, Any]:
        path.write_text(content)
        return settings_of(override(DEMO, {key: str(path), f"{section}.pretrained": True}), section)

    def resumes(begun: dict[str, Any], now: dict[str, Any]) -> bool:
        out = tmp_path / f"out{next(number)}"
        Output(out, "train", begun).begin()
        (out / "model.json").write_text("{}")  # a result: without one the folder would be free
        try:
            return Output(out, "train", now).begin() == "unfinished"
        except UserError:
            return False

    a, b = tmp_path / "a.pth", tmp_path / "b.pth"
    begun = settings(a, "weights")
    assert begun[f"{key}.sha256"] == hashlib.sha256(b"weights").hexdigest()
    assert resumes(begun, settings(a, "weights"))
    assert resumes(begun, settings(b, "weights"))
    assert not resumes(begun, settings(a, "others"))
    assert not resumes(begun, settings_of(override(DEMO, {f"{section}.pretrained": True}), section))

    with pytest.raises(UserError, match=rf"holds a run with another {key}.sha256 \("):
        Output(tmp_path / "out0", "train", settings(a, "others")).begin()
    old = {name: value for name, value in begun.items() if name != f"{key}.sha256"}  # version 0.1
    assert resumes(old, settings(a, "weights"))
    assert not resumes(old, settings(b, "weights"))
    fingerprints = {
        Output(tmp_path, "train", found).fingerprint
        for found in (begun, settings(b, "weights"), settings(b, "others"), old)
    }
    assert len(fingerprints) == 3


def test_without_a_backbones_file_the_settings_are_those_of_version_0_1():
    for section in ("classifier", "segmenter"):
        settings = settings_of(DEMO, section)
        assert settings[f"{section}.backbone_checkpoint"] is None
        assert f"{section}.backbone_checkpoint.sha256" not in settings
    absent = override(DEMO, {"classifier.backbone_checkpoint": "/absent", "classifier.pretrained": True})
    assert "classifier.backbone_checkpoint" not in settings_of(absent, "segmenter")
    with pytest.raises(UserError, match="/absent can't be read"):
        settings_of(absent, "classifier")


def test_tiles_of_each_stage_are_noted_by_themselves():
    labels = override(DEMO, {"label.tile_px": 256})
    assert not [key for key in settings_of(labels, "predict") if "tile" in key]
    masks = override(DEMO, {"predict.tile_px": 256, "predict.tile_overlap": 64})
    assert {k: v for k, v in settings_of(masks, "label", "predict").items() if "tile" in k} == {
        "predict.tile_px": 256,
        "predict.tile_overlap": 64,
    }


def test_tiles_decide_the_labels_and_outputs_without_them_stay_resumable(tmp_path):
    """Before there were tiles, no manifest had their keys, and the fingerprint counts all keys."""
    assert not [key for key in settings_of(DEMO, "label") if "tile" in key]
    tiles = override(DEMO, {"label.tile_px": 256})
    noted = settings_of(tiles, "label")
    assert {key: noted[key] for key in noted if "tile" in key} == {
        "label.tile_px": 256,
        "label.tile_overlap": None,
    }
    Output(tmp_path / "labels", "label", noted).begin()
    (tmp_path / "labels" / "part-000000.parquet").write_bytes(b"result")
    assert Output(tmp_path / "labels", "label", noted).begin() == "unfinished"
    for other, said in ({"label.tile_px": 512}, "256, now 512"), ({"label.tile_overlap": 64}, "None, now 64"):
        with pytest.raises(UserError, match=rf"holds a run with another label.tile_\w+ \({said}\)"):
            Output(tmp_path / "labels", "label", settings_of(override(tiles, other), "label")).begin()
    with pytest.raises(UserError, match=r"another label.tile_px \(256, now not set\)"):
        Output(tmp_path / "labels", "label", settings_of(DEMO, "label")).begin()


def test_a_mask_threshold_other_than_sams_is_noted():
    assert not any("mask_threshold" in key for key in settings_of(DEMO, "label", "cpm"))
    lower = override(DEMO, {"label.mask_threshold": -1.0})
    assert settings_of(lower, "label", "cpm")["label.mask_threshold"] == -1
