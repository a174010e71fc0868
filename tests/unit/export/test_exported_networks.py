"""Exported networks: what other programs compute from the files against what ours computes."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from timm.layers.conv2d_same import Conv2dSame
from torch.nn import functional as F
from torch.testing import assert_close

from ray_wsss import cli
from ray_wsss.config import PredictConfig
from ray_wsss.data.scenes import make_scene
from ray_wsss.errors import UserError
from ray_wsss.export.network import check, programs
from ray_wsss.export.network import run as run_module
from ray_wsss.export.network.run import export_model
from ray_wsss.export.network.same_padding import TraceableConv2dSame, make_traceable
from ray_wsss.models.segmenter import SegmenterSpec
from ray_wsss.models.store import load_classifier, load_segmenter
from ray_wsss.ops.resize import to_tensor
from ray_wsss.runs.manifest import Output
from ray_wsss.stages.cams import find_cams
from ray_wsss.stages.predict import Predictor

CLASSES = tuple("abcdef")


def scenes(count: int, height: int, width: int) -> np.ndarray:
    large = np.stack([make_scene(k, max(48, height), max(48, width)).image for k in range(count)])
    return large[:, :height, :width].copy()


@pytest.fixture(scope="module")
def trained(segmenter_dir, finish_classifier, tmp_path_factory) -> Callable[[str], Path]:
    """Outputs of the trainings, by the kind of the network."""
    output = Output(tmp_path_factory.mktemp("trained") / "segmenter", "train-segmenter", {})
    output.begin()
    shutil.copytree(segmenter_dir, output.out, dirs_exist_ok=True)
    output.finish()
    found = {
        "segmenter": output.out,
        "classifier": finish_classifier({"classifier.augment.long_side_px": [48, 64]}),
    }
    return found.__getitem__


def logits_of(folder: Path, images: np.ndarray) -> torch.Tensor:
    model = load_segmenter(folder)[0]
    with torch.no_grad():
        cells = model(to_tensor(list(images), torch.device("cpu")))
        return F.interpolate(cells, images.shape[1:3], mode="bilinear")


def test_onnx_of_a_segmenter(trained, tmp_path):
    """By ONNX Runtime: logits of the network, labels of predict, for several numbers of images."""
    made = export_model(trained("segmenter"), tmp_path / "out", "onnx", size_hw=(50, 71))
    assert made.difference is not None
    assert made.difference < 1e-5
    session = onnxruntime.InferenceSession(made.path, providers=["CPUExecutionProvider"])
    (entry,) = session.get_inputs()
    assert (entry.name, entry.type, entry.shape[1:]) == ("images", "tensor(uint8)", [50, 71, 3])
    predictor = Predictor.load(trained("segmenter"), PredictConfig())
    for count in (1, 3):
        images = scenes(count, 50, 71)
        labels, logits = map(np.asarray, session.run(["labels", "logits"], {"images": images}))
        assert_close(torch.from_numpy(logits), logits_of(trained("segmenter"), images), rtol=1e-4, atol=1e-5)
        expected = np.stack([predictor(image) for image in images])
        assert len(np.unique(expected)) > 1
        assert np.mean(labels != expected) < 1e-3
        assert labels.dtype == np.uint8
    described = json.loads((tmp_path / "out" / "model.json").read_text())
    assert json.loads(session.get_modelmeta().custom_metadata_map["ray_wsss"]) == described
    assert described["class_names"] == list(CLASSES)
    assert [entry["name"] for entry in described["labels"]] == ["background", *CLASSES]
    assert described["run"] == str(trained("segmenter"))


def test_larger_images_are_scaled_down_as_predict_does(trained, tmp_path):
    """But for the rounding of grey levels."""
    config = PredictConfig(max_side_px=64)
    made = export_model(
        trained("segmenter"), tmp_path / "out", "torch-export", size_hw=(80, 128), predict=config
    )
    images = scenes(2, 80, 128)
    found = programs.run_torch(made.path, torch.from_numpy(images))["labels"].numpy()
    predictor = Predictor.load(trained("segmenter"), config)
    expected = np.stack([predictor(image) for image in images])
    assert (found != expected).mean() < 0.02
    whole = np.stack([Predictor.load(trained("segmenter"), PredictConfig())(image) for image in images])
    assert (whole != expected).mean() > 0.02


_LOAD = """
import sys, numpy, torch
program = torch.export.load(sys.argv[1], extra_files=(extra := {"ray_wsss.json": ""}))
images = torch.from_numpy(numpy.load(sys.argv[2]))
results = program.module()(images)
numpy.savez(sys.argv[3], **{k: v.numpy() for k, v in results.items()})
assert not [name for name in sys.modules if name.startswith("ray_wsss")]
print(extra["ray_wsss.json"])
"""


def test_torch_export_of_a_classifier_needs_none_of_our_code(trained, tmp_path):
    """Another process gets probabilities and CAMs of every class, for images larger than in training."""
    made = export_model(trained("classifier"), tmp_path / "out", "torch-export", size_hw=(70, 96))
    images = scenes(2, 70, 96)
    np.save(tmp_path / "images.npy", images)
    arguments = [made.path, tmp_path / "images.npy", tmp_path / "results.npz"]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    told = subprocess.run(
        [sys.executable, "-c", _LOAD, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
    )
    assert told.returncode == 0, told.stderr
    assert json.loads(told.stdout)["class_names"] == list(CLASSES)
    found = np.load(tmp_path / "results.npz")
    model, _ = load_classifier(trained("classifier"))
    seen = to_tensor(list(images), torch.device("cpu"))
    scale = 64 / 96
    expected = find_cams(model, seen, torch.ones(2, 6), scales=(scale,), flip=False).cam
    assert_close(torch.from_numpy(found["cams"]).flatten(0, 1), expected, rtol=1e-4, atol=1e-5)
    small = F.interpolate(seen, (47, 64), mode="bilinear", antialias=True)
    with torch.no_grad():
        assert_close(torch.from_numpy(found["scores"]), model(small).logits.sigmoid(), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_images_of_any_size(save_segmenter, tmp_path):
    """One .pt2 file, by the command: jaxtyping's checks of shapes can't run while a size is unknown."""
    output = Output(tmp_path / "segmenter", "train-segmenter", {})
    output.begin()
    spec = SegmenterSpec(
        class_names=CLASSES,
        backbone="tf_efficientnet_lite0",
        output_stride=16,
        aspp_dim=8,
        atrous_rates=(1, 2, 3),
    )
    save_segmenter(spec, output.out)
    output.finish()
    arguments = ["--run", output.out, "--out", tmp_path / "out", "--format", "torch-export"]
    told = subprocess.run(
        [sys.executable, "-m", "ray_wsss", "export-model", *map(str, arguments)],
        capture_output=True,
        text=True,
    )
    assert told.returncode == 0, told.stderr
    assert "differ from ours by at most" in told.stdout
    module = torch.export.load(tmp_path / "out" / "model.pt2").module()
    for shape in [(1, 32, 75), (3, 90, 33)]:
        images = scenes(*shape)
        with torch.no_grad():
            found = module(torch.from_numpy(images))["logits"]
        assert_close(found, logits_of(output.out, images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("kernel", "dilation"), [(3, 1), (5, 1), (3, 2)])
def test_same_padding_of_any_size(kernel, dilation):
    torch.manual_seed(0)
    network = torch.nn.Sequential(Conv2dSame(2, 3, kernel, stride=2, dilation=dilation))
    images = [torch.rand(1, 2, height, width) for height, width in [(8, 9), (11, 10), (1, 2)]]
    expected = [network(image) for image in images]
    make_traceable(network)
    assert isinstance(network[0], TraceableConv2dSame)
    for image, result in zip(images, expected):
        assert_close(network(image), result)


def test_weights_of_a_segmenter_fit_plain_smp(trained, tmp_path):
    made = export_model(trained("segmenter"), tmp_path / "out", "safetensors")
    with safe_open(made.path, "pt") as file:
        described = json.loads(file.metadata()["ray_wsss"])
    assert described == json.loads((tmp_path / "out" / "model.json").read_text())
    how = described["smp"]
    assert how["class"] == "DeepLabV3"
    model = smp.DeepLabV3(**how["arguments"])
    model.load_state_dict(load_file(made.path))
    images = scenes(2, 64, 72)
    mean, std = (torch.tensor(described["preprocessing"][key]).view(3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        cells = model.eval()((torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - mean) / std)
    found = F.interpolate(cells, (64, 72), mode="bilinear")
    assert_close(found, logits_of(trained("segmenter"), images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("architecture", "backbone", "stride"),
    [
        ("upernet", "resnet_small", 32),
        pytest.param("deeplabv3plus", "resnet_small", 16, marks=pytest.mark.slow),
        pytest.param("segformer", "resnet_small", 32, marks=pytest.mark.slow),
        pytest.param("unet", "resnet_small", 32, marks=pytest.mark.slow),
        pytest.param("deeplabv3plus", "tf_efficientnet_lite0", 8, marks=pytest.mark.slow),
        pytest.param("upernet", "tf_efficientnet_lite0", 32, marks=pytest.mark.slow),
    ],
)
def test_weights_of_other_segmenters_fit_plain_smp(save_segmenter, tmp_path, architecture, backbone, stride):
    """Built as the documents say, from model.json alone; the logits are those of our cells, and differ."""
    output = Output(tmp_path / "segmenter", "train-segmenter", {})
    output.begin()
    spec = SegmenterSpec(
        class_names=CLASSES,
        architecture=architecture,
        backbone=backbone,
        output_stride=stride,
        aspp_dim=32,
        atrous_rates=(1, 2, 3),
    )
    save_segmenter(spec, output.out)
    output.finish()
    made = export_model(output.out, tmp_path / "out", "safetensors")
    assert made.difference is not None
    assert made.difference < 1e-4
    described = json.loads((tmp_path / "out" / "model.json").read_text())
    how, preprocessing = described["smp"], described["preprocessing"]
    model = getattr(smp, how["class"])(**how["arguments"])
    model.load_state_dict(load_file(made.path))
    height, width = (2 * preprocessing["multiple"], 3 * preprocessing["multiple"])
    images = scenes(2, height, width)
    mean, std = (torch.tensor(preprocessing[key]).view(3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        cells = model.eval()((torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - mean) / std)
    found = F.interpolate(cells, (height, width), mode="bilinear")
    expected = logits_of(output.out, images)
    assert_close(found, expected, rtol=1e-3, atol=1e-3 * expected.std().item())


def test_weights_of_a_classifier_fit_plain_timm(trained, tmp_path):
    made = export_model(trained("classifier"), tmp_path / "out", "safetensors")
    described = json.loads((tmp_path / "out" / "model.json").read_text())
    state = load_file(made.path)
    backbone = timm.create_model(described["timm"]["name"], **described["timm"]["arguments"]).eval()
    backbone.load_state_dict(
        {n.removeprefix("backbone."): v for n, v in state.items() if n.startswith("backbone.")}
    )
    seen = to_tensor(list(scenes(2, 64, 72)), torch.device("cpu"))
    mean, std = (torch.tensor(described["preprocessing"][key]).view(3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        features = F.conv2d(backbone((seen - mean) / std)[-1], state["to_features.weight"]).relu()
        maps = F.conv2d(features, state["to_class_maps.weight"])
        assert_close(maps.mean((2, 3)), load_classifier(trained("classifier"))[0](seen).logits)


def test_a_finished_export_stays(trained, tmp_path):
    export_model(trained("classifier"), tmp_path / "out", "safetensors")
    before = (tmp_path / "out" / "model.safetensors").stat().st_mtime_ns
    assert export_model(trained("classifier"), tmp_path / "out", "safetensors").difference is None
    assert (tmp_path / "out" / "model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(UserError, match=r"holds a run with another format \(safetensors, now torch-export\)"):
        export_model(trained("classifier"), tmp_path / "out", "torch-export", size_hw=(64, 64))


def test_what_differs_is_not_written(trained, tmp_path, monkeypatch):
    def off(path: Path, images: torch.Tensor) -> dict[str, torch.Tensor]:
        results = programs.run_torch(path, images)
        return results | {"logits": results["logits"] + 0.5}

    monkeypatch.setattr(run_module, "run_torch", off)
    with pytest.raises(UserError, match=r"logits of the torch-export file differs .* nothing was written"):
        export_model(trained("segmenter"), tmp_path / "out", "torch-export", size_hw=(48, 48))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["manifest.json"]


def test_the_check_finds_other_labels_shapes_and_nan():
    images = check.check_images([(1, 48, 48)])
    right = {"labels": torch.zeros(1, 4, 4, dtype=torch.uint8), "logits": torch.ones(1, 2)}
    for wrong in (
        {"labels": torch.ones(1, 4, 4, dtype=torch.uint8)},
        {"labels": torch.zeros(1, 4, 4, dtype=torch.int32)},
        {"logits": torch.ones(2, 2)},
        {"logits": torch.full((1, 2), torch.nan)},
    ):
        with pytest.raises(UserError, match=next(iter(wrong))):
            check.largest_difference(lambda _: right, lambda _, w=wrong: right | w, images, "file")
    assert check.largest_difference(lambda _: right, lambda _: right, images, "file") == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"--run": "nothing"}, "nothing has no manifest.json of ray-wsss; expected the output of train-"),
        ({"--size": ("16", "64")}, "--size is 16 64; expected sides of at least 32 pixels"),
        ({"--size": "64"}, "--size is 64; expected a height and a width, such as 512 512"),
        ({"--size": ("64", "64"), "--format": "safetensors"}, "weights have no size"),
        ({"--predict.scales": ("0.5", "1")}, "sees an image once; expected predict.scales 1"),
        ({"--out": "."}, "lies in --out"),
    ],
)
def test_what_can_not_be_exported(trained, tmp_path, monkeypatch, capsys, flags, message):
    monkeypatch.chdir(trained("segmenter").parent)
    given = {"--run": "segmenter", "--out": str(tmp_path / "out"), "--format": "torch-export"} | flags
    words = [
        part
        for name, value in given.items()
        for part in (name, *([value] if isinstance(value, str) else value))
    ]
    assert cli.main(["export-model", *words]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_missing_package_is_named(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(
        programs.importlib.util, "find_spec", lambda name: None if name == "onnxscript" else 1
    )
    with pytest.raises(UserError, match=r"needs the package onnxscript, .* pip install -e '\.\[onnx\]'"):
        export_model(trained("segmenter"), tmp_path / "out", "onnx", size_hw=(48, 48))


def test_outputs_of_other_commands_are_refused(tmp_path):
    output = Output(tmp_path / "labels", "label", {})
    output.begin()
    with pytest.raises(UserError, match="holds the output of label; expected the output of train-segmenter"):
        export_model(tmp_path / "labels", tmp_path / "out", "onnx")
