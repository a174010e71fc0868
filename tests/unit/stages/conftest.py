"""What tests of training with SAM's views of whole images share."""

from collections.abc import Callable
from pathlib import Path

import pytest

from ray_wsss.config import EmbedConfig, SamConfig, SegmentsConfig
from ray_wsss.data.embeddings import EmbeddingDtype
from ray_wsss.models.sam.tiny import IMAGE_SIZE_PX
from ray_wsss.stages.chunks import PrepareImages, plan_chunks
from ray_wsss.stages.embed import SamEmbedder
from ray_wsss.stages.parts import Parts
from ray_wsss.stages.segment import SegmentEverything

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
                table, tally = stage(PrepareImages(sam_side_px=IMAGE_SIZE_PX)(chunk))
                Parts(folders[name], "").write(chunk, table, tally)
        return folders

    return make
