"""What the figure of prompts shows of one image and class, read from a data set and its labels."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from ray_wsss.config import LabelConfig
from ray_wsss.data.coco import decode_rle
from ray_wsss.data.images import decode_image, decode_mask
from ray_wsss.data.reader import ShardReader
from ray_wsss.data.schema import DatasetMetadata
from ray_wsss.models.store import load_classifier
from ray_wsss.ops.cam import resize_maps
from ray_wsss.ops.regions import peak_regions
from ray_wsss.report.prompt_figure import PromptExample
from ray_wsss.stages.chunks import shrink
from ray_wsss.stages.label import to_tensor
from ray_wsss.stages.prompt_cases import Pair
from ray_wsss.stages.prompting import find_cams


class ExampleMaker:
    """Makes examples of pairs; computes their CAMs once more, on the CPU.

    Args:
        labels: by kind of prompt, outputs of ``label`` for ``dataset``.
    """

    def __init__(
        self, config: LabelConfig, *, dataset: Path, classifier: Path, labels: Mapping[str, Path]
    ) -> None:
        self.config = config
        self.model, self.spec = load_classifier(classifier)
        self.rows = ShardReader(dataset)
        self.class_names = DatasetMetadata.load(dataset).class_names
        self.labels = {kind: ShardReader(folder) for kind, folder in labels.items()}

    def __call__(self, pair: Pair) -> PromptExample:
        """The example of a pair."""
        row = self.rows.read(self.rows.index_of(pair.image_id), ["image", "orientation", "mask"])
        image = decode_image(row["image"], row["orientation"])
        image_hw = (image.shape[0], image.shape[1])
        small = shrink(image, self.config.max_side_px)
        image_labels = torch.zeros(1, len(self.spec.class_names))
        image_labels[0, pair.class_index] = 1
        batch = to_tensor([small], torch.device("cpu"))
        cams = find_cams(self.model, batch, image_labels, scales=self.config.scales, flip=self.config.flip)
        cam = resize_maps(cams.cam[None], image_hw)[0, 0].numpy()
        segments = {kind: self._segment(kind, pair) for kind in self.labels}
        points_xy = np.array(segments["points"]["points_xy"], np.float32).reshape(-1, 2)
        return PromptExample(
            title=f"{self.class_names[pair.class_index]}, {pair.image_id}",
            image=image,
            cam=cam,
            points_xy=points_xy,
            regions=peak_regions(cam, points_xy[:, ::-1].astype(int), self.config.tau),
            truth=decode_mask(row["mask"]) == pair.class_index + 1,
            masks={kind: decode_rle(segment["rle"], image_hw) for kind, segment in segments.items()},
            iou=pair.iou,
        )

    def _segment(self, kind: str, pair: Pair) -> dict:
        reader = self.labels[kind]
        found = reader.read(reader.index_of(pair.image_id), ["segments"])["segments"]
        return next(segment for segment in found if segment["class_index"] == pair.class_index)
