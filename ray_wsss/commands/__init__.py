"""The commands of ``ray-wsss``, one dataclass each: its fields are the flags, its docstrings the help."""

from ray_wsss.commands.apply import Evaluate, Predict
from ray_wsss.commands.compare_prompts import ComparePrompts
from ray_wsss.commands.export import ExportCoco, ExportFolder, ExportLabelStudio, ExportVoc, ExportYolo
from ray_wsss.commands.ingest import IngestCoco, IngestCsv, IngestFolder, IngestVoc
from ray_wsss.commands.report import WriteReport
from ray_wsss.commands.run_all import RunAll
from ray_wsss.commands.show import Show
from ray_wsss.commands.stages import (
    Demo,
    Embed,
    Label,
    SegmentEverything,
    TrainClassifier,
    TrainSegmenter,
)
from ray_wsss.commands.sweep import Sweep

__all__ = [
    "ComparePrompts",
    "Demo",
    "Embed",
    "Evaluate",
    "ExportCoco",
    "ExportFolder",
    "ExportLabelStudio",
    "ExportVoc",
    "ExportYolo",
    "IngestCoco",
    "IngestCsv",
    "IngestFolder",
    "IngestVoc",
    "Label",
    "Predict",
    "RunAll",
    "SegmentEverything",
    "Show",
    "Sweep",
    "TrainClassifier",
    "TrainSegmenter",
    "WriteReport",
]
