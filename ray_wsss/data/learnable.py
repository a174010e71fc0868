"""Which classes a classifier can learn from a data set: those that some images have and others lack."""

from collections.abc import Mapping, Sequence

_NAMES_SHOWN = 10


def unlearnable(images_with: Mapping[int, int], images: int, class_names: Sequence[str]) -> list[str]:
    """Sentences that name the classes that every image has, or that no image has, and the way out.

    Args:
        images_with: number of images by the index of a class that they have.
        images: number of images whose labels are known; without any, there is nothing to say.
    """
    if not images:
        return []
    everywhere = [name for c, name in enumerate(class_names) if images_with.get(c, 0) == images]
    nowhere = [name for c, name in enumerate(class_names) if not images_with.get(c, 0)]
    sentences = []
    if everywhere:
        sentences.append(
            f"every image has {_quoted(everywhere)}: nothing shows the classifier what sets such a class "
            "apart; add images without it, such as images of other classes, a folder named with "
            "--none-folder, CSV rows with the word of --none-label, or images that a COCO or VOC file lists "
            "without objects"
        )
    if nowhere:
        sentences.append(
            f"no image has {_quoted(nowhere)}: a class without images can't be learned; add images with it, "
            "or leave it out"
        )
    return sentences


def _quoted(names: Sequence[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:_NAMES_SHOWN])
    return shown + (f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else "")
