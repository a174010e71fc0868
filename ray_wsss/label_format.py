"""The form of label maps, which follows from the number of classes alone and never from the values in a map.

=============  ====================  ======  ======  ======
classes        file                  array   tensor  ignore
=============  ====================  ======  ======  ======
up to 254      8-bit PNG in colours  uint8   uint8   255
up to 65,534   16-bit grey PNG       uint16  int32   65,535
=============  ====================  ======  ======  ======

Background is 0 and class c is c + 1. Tensors are int32, since torch has few operations for uint16.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch
    from torch import Tensor

LabelMap: TypeAlias = NDArray[np.uint8 | np.uint16]
"""A label map (H, W)."""

MAX_BYTE_CLASSES = 254
"""Most classes whose label maps have a byte per pixel."""
MAX_CLASSES = 65_534
"""Most classes of a data set."""


@dataclass(frozen=True, slots=True)
class LabelFormat:
    """Form of the label maps of a data set, or of a network's outputs; see `label_format`."""

    dtype: np.dtype[np.uint8 | np.uint16]
    """Type of arrays."""
    ignore: int
    """Label of pixels that nothing is known of."""

    def tensor_dtype(self) -> "torch.dtype":
        """Type of tensors."""
        import torch

        return torch.uint8 if self.ignore == _BYTE.ignore else torch.int32


_BYTE = LabelFormat(np.dtype(np.uint8), 255)
_WIDE = LabelFormat(np.dtype(np.uint16), 65_535)


def label_format(num_classes: int) -> LabelFormat:
    """Form of the label maps of ``num_classes`` classes, background not counted.

    Raises:
        ValueError: there are more than `MAX_CLASSES`.
    """
    if num_classes > MAX_CLASSES:
        raise ValueError(f"there are {num_classes} classes; expected at most {MAX_CLASSES:,}")
    return _BYTE if num_classes <= MAX_BYTE_CLASSES else _WIDE


def ignore_label(labels: "LabelMap | Tensor") -> int:
    """Label of ignored pixels in an array or tensor of labels, by its type.

    Raises:
        ValueError: the type is none of those that label maps have.
    """
    name = str(labels.dtype).removeprefix("torch.")
    found = {"uint8": _BYTE, "uint16": _WIDE, "int32": _WIDE}.get(name)
    if found is None:
        raise ValueError(f"labels are {name}; expected uint8, or uint16 or int32 for many classes")
    return found.ignore


def labels_to_tensor(label_map: LabelMap) -> "Tensor":
    """A label map as a tensor on the CPU; uint8 shares its memory."""
    import torch

    wide = label_map.dtype != np.uint8
    return torch.from_numpy(label_map.astype(np.int32) if wide else label_map)


def labels_to_array(labels: "Tensor") -> LabelMap:
    """A tensor of labels, on any device, as an array."""
    array = labels.cpu().numpy()
    return array if array.dtype == np.uint8 else array.astype(np.uint16)
