"""Label Studio: its JSON export, read as a source, and its brush regions."""

from ray_wsss.data.label_studio.brush import decode_brush, decode_brushes, encode_brush
from ray_wsss.data.label_studio.read import read_label_studio

__all__ = ["decode_brush", "decode_brushes", "encode_brush", "read_label_studio"]
