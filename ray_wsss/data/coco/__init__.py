"""COCO: its instances JSON, and its masks as polygons and run lengths."""

from ray_wsss.data.coco.masks import Rle, decode_rle, encode_rle
from ray_wsss.data.coco.orient import orient
from ray_wsss.data.coco.rasterise import rasterise
from ray_wsss.data.coco.read import read_coco

__all__ = ["Rle", "decode_rle", "encode_rle", "orient", "rasterise", "read_coco"]
