"""Folders in transformers' format: found, read, hashed, or refused with a sentence."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError
from safetensors.torch import load_file, save_file
from small_models import save_small

from ray_wsss.config import SamConfig, SamName
from ray_wsss.errors import UserError
from ray_wsss.models.promptable.build import build_decoder, build_model, input_frame, weights_sha256
from ray_wsss.models.promptable.frame import InputFrame


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_small("sam2.1_tiny", tmp_path_factory.mktemp("small"))


def sam2(folder: Path) -> SamConfig:
    return SamConfig(name="sam2.1_tiny", checkpoint=str(folder))


def changed(folder: Path, out: Path, **settings: Any) -> Path:
    """A copy of a folder with other settings."""
    out.mkdir()
    (out / "model.safetensors").symlink_to(folder / "model.safetensors")
    found = json.loads((folder / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(found | settings))
    return out


def test_the_frame_is_that_of_the_folder(folder):
    assert input_frame(sam2(folder)) == build_model(sam2(folder)).frame == InputFrame(128, squeeze=True)
    assert input_frame(SamConfig(name="sam2.1_large")) == InputFrame(1024, squeeze=True)
    assert input_frame(SamConfig(name="sam3_tracker")) == InputFrame(1008, squeeze=True)
    assert input_frame(SamConfig(name="hq_vit_h")) == InputFrame(1024)


def test_a_decoder_has_no_image_encoder(folder):
    whole, decoder = build_model(sam2(folder)), build_decoder(sam2(folder))
    sizes = [sum(p.numel() for p in model.parameters()) for model in (whole, decoder)]
    assert sizes[1] < 0.3 * sizes[0]
    assert decoder.map_shapes == whole.map_shapes
    assert not any(p.requires_grad for p in whole.parameters())


def test_the_hash_is_that_of_weights_and_settings(folder, tmp_path):
    sha256 = weights_sha256(sam2(folder))
    assert weights_sha256(sam2(changed(folder, tmp_path / "same"))) != sha256  # another text of config.json
    weights = load_file(folder / "model.safetensors")
    other = changed(folder, tmp_path / "other")
    (other / "model.safetensors").unlink()
    save_file({k: v + 1 for k, v in weights.items()}, other / "model.safetensors")
    assert len({sha256, weights_sha256(sam2(other)), weights_sha256(sam2(tmp_path / "same"))}) == 3


def test_pickled_weights_are_never_read(folder, tmp_path):
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    torch.save(load_file(folder / "model.safetensors"), tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"no config\.json with \*\.safetensors .*pickled weights are never"):
        build_model(sam2(tmp_path))


def test_folders_that_do_not_fit(folder, tmp_path):
    with pytest.raises(UserError, match=r"holds no config\.json that can be read"):
        input_frame(sam2(tmp_path))
    with pytest.raises(UserError, match=r"holds no config\.json with \*\.safetensors"):
        build_model(sam2(tmp_path / "missing"))
    with pytest.raises(UserError, match=r"holds a model of type sam2; expected HQ-SAM Base \(sam_hq\)"):
        build_model(SamConfig(name="hq_vit_b", checkpoint=str(folder)))
    lacking = changed(folder, tmp_path / "lacking")
    weights = load_file(folder / "model.safetensors")
    (lacking / "model.safetensors").unlink()
    kept = {k: v for k, v in weights.items() if "iou_token" not in k}
    save_file(kept, lacking / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks 1 weights of SAM 2\.1 Tiny, the first is .*iou_token"):
        build_model(sam2(lacking))
    damaged = changed(folder, tmp_path / "damaged")
    (damaged / "model.safetensors").unlink()
    (damaged / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(UserError, match=r"holds no SAM 2\.1 Tiny that can be read"):
        build_model(sam2(damaged))


def test_without_transformers_a_sentence_says_what_to_install(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    for config in (sam2(folder), SamConfig(name="edgetam")):
        with pytest.raises(UserError, match=r"needs transformers, .*: pip install -e '\.\[sam2\]'"):
            build_model(config)


def refusing(error: Exception):
    def snapshot_download(repo_id: str, **options: Any) -> str:
        assert not [pattern for pattern in options["allow_patterns"] if "bin" in pattern or "pt" in pattern]
        raise error

    return snapshot_download


@pytest.mark.parametrize(
    ("name", "gated", "message"),
    [
        (
            "sam3_tracker",
            True,
            r"SAM 3's tracker \(SAM License\) are given on request: ask for access at https://huggingface\.co/",
        ),
        (
            "sam2.1_small",
            False,
            r"SAM 2\.1 Small can't be fetched from https://.*/facebook/sam2\.1-hiera-small",
        ),
    ],
)
def test_weights_that_can_not_be_fetched(name: SamName, gated, message, monkeypatch):
    response: Any = SimpleNamespace(headers={}, request=None)
    error = GatedRepoError("gated", response=response) if gated else LocalEntryNotFoundError("no network")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", refusing(error))
    with pytest.raises(UserError, match=message):
        build_model(SamConfig(name=name))


def test_weights_of_the_hub_are_read_from_its_cache(folder, monkeypatch):
    asked = []

    def snapshot_download(repo_id: str, **options: Any) -> str:
        asked.append(repo_id)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    model = build_model(SamConfig(name="sam2.1_tiny"))
    assert asked == ["facebook/sam2.1-hiera-tiny"]
    assert model.map_shapes[0] == (32, 8, 8)
