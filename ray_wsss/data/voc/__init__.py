"""Pascal VOC and the folders that CVAT, datumaro and others write in its form."""

from ray_wsss.data.voc.classes import VOC_CLASS_NAMES
from ray_wsss.data.voc.read import read_voc

__all__ = ["VOC_CLASS_NAMES", "read_voc"]
