"""Label Studio: tasks with predicted brush masks to correct, and the labelling interface that shows them.

OUT/tasks.json           to upload under Import
OUT/config.xml           to paste under Settings, Labeling Interface, Code
OUT/images/NAME.jpg      served by Label Studio's local storage, see `LabelStudioFormat`
"""

import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from ray_wsss.data.images import voc_palette
from ray_wsss.export.files import JsonList, StreamedFile, write_picture, write_text
from ray_wsss.export.record import ExportedImage, Instance

_RUN_BITS = (3, 4, 8, 16)
"""The four widths of run lengths in a brush region, in bits, ascending."""
_CHANNELS = 4


class LabelStudioFormat:
    """Writes Label Studio's tasks, streaming them to disk.

    Args:
        url_prefix: text before "images/NAME.jpg" in the image URL of a task. Label Studio's local storage
            needs "/data/local-files/?d=", with LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true and the output
            folder as LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT.
    """

    def __init__(
        self, out: Path, class_names: Sequence[str], *, url_prefix: str, skip_images: bool = False
    ) -> None:
        self.out, self.class_names = out, class_names
        self.url_prefix, self.skip_images = url_prefix, skip_images
        self.file = StreamedFile(out / "tasks.json")
        self.file.write("[")
        self.tasks = JsonList(self.file)

    def add(self, image: ExportedImage) -> None:
        name = write_picture(self.out / "images", image, skip=self.skip_images)
        results = [self._result(k, instance, image) for k, instance in enumerate(image.instances)]
        prediction: dict[str, Any] = {"model_version": "ray-wsss", "result": results}
        known = [score for i in image.instances if (score := i.scores.score) is not None]
        if known:
            prediction["score"] = min(known)
        address = f"{self.url_prefix}{quote(f'images/{name}')}"
        data = {"image": address, "ray_wsss_id": image.image_id}
        self.tasks.add({"data": data, "predictions": [prediction]})

    def finish(self) -> None:
        self.file.write("\n]\n")
        self.file.finish()
        view = ET.Element("View")
        ET.SubElement(view, "Image", name="image", value="$image", zoom="true")
        labels = ET.SubElement(view, "BrushLabels", name="mask", toName="image")
        for name, colour in zip(self.class_names, voc_palette(1 + len(self.class_names))[1:], strict=True):
            ET.SubElement(labels, "Label", value=name, background="#" + bytes(colour).hex())
        ET.indent(view)
        write_text(self.out / "config.xml", [ET.tostring(view, encoding="unicode")])

    def _result(self, index: int, instance: Instance, image: ExportedImage) -> dict[str, Any]:
        height, width = image.image_hw
        result: dict[str, Any] = {
            "id": f"{image.number}_{index}",
            "type": "brushlabels",
            "from_name": "mask",
            "to_name": "image",
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
            "value": {
                "format": "rle",
                "rle": list(encode_brush(instance.mask(image.image_hw))),
                "brushlabels": [self.class_names[instance.class_index]],
            },
        }
        return result | ({"score": instance.scores.score} if instance.scores.score is not None else {})


def encode_brush(mask: NDArray[np.bool_]) -> bytes:
    """Encode a mask (H, W) for a brush region of Label Studio: thi.ng's rle-pack of an RGBA image.

    All four channels are 255 inside the mask and 0 outside. The bit stream holds the number of bytes of the
    image (32 bits), the width of a value less one (5 bits), and four widths of run lengths less one (4 bits
    each). Each run follows as a 1 (1 bit), the index of its width (2 bits), its length less one (in that
    width) and its value (8 bits).
    """
    flat = mask.ravel()
    starts = np.flatnonzero(np.diff(flat, prepend=~flat[:1]))
    lengths = np.diff(starts, append=len(flat)) * _CHANNELS
    bits = [f"{len(flat) * _CHANNELS:032b}{8 - 1:05b}", *[f"{width - 1:04b}" for width in _RUN_BITS]]
    longest = 1 << _RUN_BITS[-1]
    for start, length in zip(starts.tolist(), lengths.tolist()):
        value = "11111111" if flat[start] else "00000000"
        for done in range(0, length, longest):
            count = min(longest, length - done) - 1
            which = next(k for k, width in enumerate(_RUN_BITS) if count < 1 << width)
            bits.append(f"1{which:02b}{count:0{_RUN_BITS[which]}b}{value}")
    packed = "".join(bits)
    size = -(-len(packed) // 8)
    return int(packed.ljust(8 * size, "0"), 2).to_bytes(size, "big")
