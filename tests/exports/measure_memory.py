"""Peak memory of an export of many labels: python tests/exports/measure_memory.py 1000 5000 20000

Every export runs in a process of its own, which reports its own peak; the data sets are generated scenes of
96 px, a few of them over and over.
"""

import io
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from ray_wsss.data.images import encode_mask
from ray_wsss.data.scenes import Scene, make_scene
from ray_wsss.data.schema import IMAGE_SCHEMA, DatasetMetadata, write_table_atomically
from ray_wsss.runs.manifest import Output
from ray_wsss.stages.label import LABEL_SCHEMA

_ROWS = 256
_RUN = """
import resource, sys
from ray_wsss.cli import main
assert main(sys.argv[1:]) == 0
print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def write_labels(count: int, folder: Path) -> tuple[Path, Path]:
    """A data set of so many scenes and labels for it."""
    scenes = [make_scene(seed) for seed in range(8)]
    pictures = [_jpeg(scene.image) for scene in scenes]
    masks = [encode_mask(_label_map(scene)) for scene in scenes]
    segment = {"class_index": 0, "points_xy": [[1.0, 2.0]], "sam_score": 0.9, "cam_mean": 0.5, "area": 9}
    dataset, labels = folder / f"dataset_{count}", folder / f"labels_{count}"
    output = Output(labels, "label", {})
    output.begin()
    for part, first in enumerate(range(0, count, _ROWS)):
        size = {"height": scenes[0].image.shape[0], "width": scenes[0].image.shape[1]}
        rows = [size | {"image_id": f"folder/{n}"} for n in range(first, min(first + _ROWS, count))]
        images = [
            row | {"image": pictures[n % 8], "orientation": 1, "image_labels": []}
            for n, row in enumerate(rows)
        ]
        found = [row | {"pseudo_label": masks[n % 8], "segments": [segment]} for n, row in enumerate(rows)]
        for out, table, schema in ((dataset, images, IMAGE_SCHEMA), (labels, found, LABEL_SCHEMA)):
            path = out / "shards" / f"part-{part:06d}.parquet"
            write_table_atomically(pa.Table.from_pylist(table, schema=schema), path)
    names = tuple(f"class {k}" for k in range(6))
    DatasetMetadata(
        class_names=names, source="csv", images=count, unlabelled=0, errors=0, has_masks=False
    ).save(dataset)
    output.finish()
    return dataset, labels


def _label_map(scene: Scene) -> NDArray[np.uint8]:
    label_map = np.zeros(scene.image.shape[:2], np.uint8)
    for thing in scene.objects:
        label_map[thing.body] = thing.class_index + 1
    return label_map


def _jpeg(pixels: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def measure(count: int, folder: Path) -> float:
    """Peak resident memory in MiB of exporting so many labels as COCO."""
    dataset, labels = write_labels(count, folder)
    flags = ["--dataset", str(dataset), "--labels", str(labels), "--out", str(folder / f"out_{count}")]
    command = [sys.executable, "-c", _RUN, "export", "coco", *flags, "--skip-images"]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(result.stdout.split()[-1]) / 1024


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        for word in sys.argv[1:]:
            print(f"{int(word):,} labels: peak of {measure(int(word), Path(temporary)):.0f} MiB", flush=True)
