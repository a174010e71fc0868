"""The background threshold of CAMs that is fixed before any ground truth is seen."""

from pathlib import Path

from ray_wsss.config import EvaluateConfig
from ray_wsss.runs.manifest import read_manifest

WITH_CPM = 0.5
"""CPM's loss has the CAM as the logit of a class and 1 - CAM as that of the background (`ops.cpm_loss`). They
are equal here, at every temperature: training moves pixels of objects above this value, others below it."""
WITHOUT_CPM = 0.3
"""No loss says where the CAMs of a plain classifier separate objects from background; a customary value."""


def fixed_threshold(config: EvaluateConfig, *, with_cpm: bool) -> float:
    """The threshold that the settings name, else the one for a classifier trained with or without CPM."""
    if config.cam_threshold is not None:
        return float(config.cam_threshold)
    return WITH_CPM if with_cpm else WITHOUT_CPM


def trained_with_cpm(classifier: Path) -> bool:
    """Whether CPM supervised a classifier's CAMs; False if its folder has no manifest that tells.

    Args:
        classifier: output of train-classifier.

    Raises:
        UserError: the manifest is unreadable, or a later version of ray_wsss wrote it.
    """
    manifest = read_manifest(classifier)
    noted = manifest["depends_on"] if manifest is not None else {}
    if not noted.get("cpm.enabled"):
        return False
    return noted["cpm.warmup_iters"] < noted["classifier.max_iters"]
