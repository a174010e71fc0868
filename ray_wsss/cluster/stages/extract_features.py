"""Feature maps of a data set by a frozen backbone, made on Ray."""

from dataclasses import replace
from pathlib import Path
from typing import Unpack

from ray_wsss.cluster.run_chunks import RunOptions, Stage, run_chunks
from ray_wsss.config import FeaturesConfig, Recipe
from ray_wsss.data.schema import DatasetMetadata
from ray_wsss.models.first_weights import begin_classifier
from ray_wsss.runs.dependencies import with_absolute_paths
from ray_wsss.runs.manifest import Output
from ray_wsss.runs.prepared_images import PrepareImages
from ray_wsss.runs.run_report import RunReport
from ray_wsss.stages.features.extract import FeatureExtractor
from ray_wsss.stages.features.stored import STAGE, extraction_settings


def run_extract_features(
    recipe: Recipe,
    *,
    features: FeaturesConfig,
    dataset: Path,
    out: Path,
    **run: Unpack[RunOptions],
) -> RunReport:
    """Run the classifier's backbone over ``dataset`` and store its feature maps in ``out``.

    Args:
        features: which maps to store.

    Raises:
        UserError: the backbone can't be built, or as `run_chunks`.
    """
    classifier = with_absolute_paths(recipe).classifier
    sides = features.sides_px or (max(classifier.augment.long_side_px),)
    features = replace(features, sides_px=sides)
    class_names = DatasetMetadata.load(dataset).class_names
    backbone = begin_classifier(classifier, class_names)[0].backbone
    depends_on = extraction_settings(features, classifier, backbone, dataset)
    stage = Stage(
        stage_class=FeatureExtractor,
        arguments={
            "config": features,
            "classifier": classifier,
            "class_names": class_names,
            "device": run["resources"].device,
        },
        prepare=PrepareImages(max_side_px=max(sides), frame=None),
    )
    return run_chunks(Output(out, STAGE, depends_on), stage, dataset=dataset, **run)
