"""Image-level labels in, pixel masks out: S2C ("From SAM to CAMs", CVPR 2024) on Ray."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ray_wsss.version import __version__

if TYPE_CHECKING:
    from ray_wsss.stages.label_images import FoundClass, ImageLabeller, LabelledPicture, label_images

__all__ = ["FoundClass", "ImageLabeller", "LabelledPicture", "__version__", "label_images"]


def __getattr__(name: str) -> Any:
    """Load what labels images on first use: importing the package alone takes no time."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("ray_wsss.stages.label_images"), name)
