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

from ray_wsss.data.images import voc_palette
from ray_wsss.data.label_studio import encode_brush
from ray_wsss.export.files import JsonList, StreamedFile, write_picture, write_text
from ray_wsss.export.record import ExportedImage, Instance


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
        data: dict[str, Any] = {"image": address, "ray_wsss_id": image.image_id}
        if image.doubt is not None:
            data["doubt"] = round(image.doubt, 4)  # a column to sort by in Label Studio's data manager
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
