"""Peak memory of labelling one image with the tiny SAM: ``python measure_label_memory.py CASE [PIXELS]``.

CASE is "photo" (8000 x 6000 pixels, 20 classes), "classes" (1024 x 768 pixels, 80 classes), "photos" (16 of
4000 x 3000 pixels, 3 classes each) or "tiles" (8000 x 6000 pixels, 3 classes, in tiles of 1024 px). PIXELS
replaces label.max_pixels_per_pass. Prints the resident memory before labelling, the highest, and the
difference.
"""

import io
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ray_wsss.config import LabelConfig, SamConfig
from ray_wsss.data.scenes import make_scene
from ray_wsss.models.classifier import ClassifierSpec, build_classifier
from ray_wsss.models.promptable.frame import InputFrame
from ray_wsss.models.sam.tiny import IMAGE_SIZE_PX
from ray_wsss.models.store import save_model
from ray_wsss.runs.prepared_images import PreparedImage, PrepareImages
from ray_wsss.stages.label import SamLabeller

CASES = {
    "photo": (1, (6000, 8000), 20),
    "classes": (1, (768, 1024), 80),
    "photos": (16, (3000, 4000), 3),
    "tiles": (1, (6000, 8000), 3),
}
TILES_PX = {"tiles": 1024}


def resident_mib(which: str) -> float:
    """Resident memory of this process: now (VmRSS), or the highest since it was last reset (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{which}:")) / 1024


def reset_highest() -> None:
    """Let the highest resident memory begin anew; Linux only."""
    Path("/proc/self/clear_refs").write_text("5")


def make_labeller(pixels: int | None, tile_px: int | None) -> SamLabeller:
    """An untrained classifier of 80 classes, and the tiny SAM, on the CPU."""
    names = tuple(f"class {k}" for k in range(80))
    spec = ClassifierSpec(class_names=names, backbone="resnet_small", output_stride=8, feature_dim=16)
    torch.manual_seed(0)
    model = build_classifier(spec)
    torch.nn.init.normal_(model.to_class_maps.weight)
    config = LabelConfig(scales=(1.0,), flip=False, tile_px=tile_px)
    if pixels is not None:
        config = replace(config, max_pixels_per_pass=pixels)
    with tempfile.TemporaryDirectory() as folder:
        save_model(model, spec, Path(folder))
        return SamLabeller(config, SamConfig(name="tiny", precision="fp32"), Path(folder))


def make_images(
    count: int, image_hw: tuple[int, int], classes: int, tile_px: int | None
) -> list[PreparedImage]:
    """Generated photographs of one size, prepared as the tasks that decode images do."""
    small = Image.fromarray(make_scene(7, 96, 128).image)
    encoded = io.BytesIO()
    small.resize((image_hw[1], image_hw[0])).save(encoded, "JPEG")
    prepare = PrepareImages(max_side_px=1024, frame=InputFrame(IMAGE_SIZE_PX), tile_px=tile_px)
    pixels = np.array(Image.open(encoded))
    return [prepare.prepare(str(k), pixels, tuple(range(classes))) for k in range(count)]


def main() -> None:
    torch.set_num_threads(1)
    tile_px = TILES_PX.get(sys.argv[1])
    labeller = make_labeller(int(sys.argv[2]) if len(sys.argv) > 2 else None, tile_px)
    labeller(make_images(1, (96, 128), 1, tile_px))  # everything is loaded
    images = make_images(*CASES[sys.argv[1]], tile_px)
    reset_highest()
    before = resident_mib("VmRSS")
    table, _ = labeller(images)
    assert table["error"].null_count == len(images)
    peak = resident_mib("VmHWM")
    print(f"{sys.argv[1]}: {before:.0f} MiB before, highest {peak:.0f} MiB, {peak - before:.0f} MiB more")


if __name__ == "__main__":
    main()
