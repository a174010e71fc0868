"""Pascal VOC data sets: image sets, labels from the XML objects, ground truth from the masks."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from ray_wsss.data.coco.prompts import BOX_LEFT_OUT
from ray_wsss.data.image_files.formats import IMAGE_SUFFIXES
from ray_wsss.data.schema import SourceRow, check_class_names, locate
from ray_wsss.data.source import Source
from ray_wsss.data.voc.classes import VOC_CLASS_NAMES, MaskReader, read_label_map, voc_mask_reader
from ray_wsss.data.voc.xml import ImageXml, read_xml
from ray_wsss.errors import UserError
from ray_wsss.storage import find_files, read_side_by_side, why_unreadable


def read_voc(root: Path, split: str = "trainval", unannotated: Literal["none", "unknown"] = "none") -> Source:
    """Read the classes and one row per name in ``ImageSets/Segmentation/SPLIT.txt`` (else ``Main``).

    ``root`` is a folder like VOCdevkit/VOC2012. Its classes are those of ``labelmap.txt``; without that file
    they are VOC's 20 if all names in the XML files are among them, else these names, sorted. The XML files of
    all splits count, so that their data sets agree.

    Labels come from all objects in ``Annotations/NAME.xml``, difficult ones included. Without that file they
    come from the mask. An XML without objects, or a mask without classes, means none of the classes. Without
    either, or with a mask of 255 (ignore) alone, the labels are unknown.

    Args:
        unannotated: what an image has whose XML has no objects: none of the classes, or nobody knows, unless
            it has a mask.

    Raises:
        UserError: ``root`` is not a VOC folder, has no such split, a malformed ``labelmap.txt``, or masks
            beside classes that only the XML files name: nobody knows which index is which of them.
    """
    if not (root / "JPEGImages").is_dir():
        raise UserError(f"{root} has no JPEGImages folder; expected a folder like VOCdevkit/VOC2012")
    folder = _Folder(
        root=root,
        images=_by_stem(find_files(root / "JPEGImages")),
        masks={_stem(n): n for n in find_files(root / "SegmentationClass") if n.lower().endswith(".png")},
        xmls=_read_xmls(root / "Annotations"),
        unannotated=unannotated,
    )
    class_names, decode_mask = _classes(folder)
    class_of = {name: index for index, name in enumerate(class_names)}
    rows = [_row(folder, name, class_of) for name in _names(folder, split)]
    own_classes = (
        f"the classes are the {len(class_names)} names in the XML files, which aren't all of VOC's 20"
    )
    remarks = [own_classes] if decode_mask is None else []
    return Source(kind="voc", class_names=class_names, rows=rows, remarks=remarks, decode_mask=decode_mask)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Folder:
    root: Path
    images: Mapping[str, Sequence[str]]
    """Files in JPEGImages by their name without suffix."""
    masks: Mapping[str, str]
    """PNGs in SegmentationClass by their name without suffix."""
    xmls: Mapping[str, ImageXml | str]
    """Content of the XML files by name without suffix, or why one can't be read."""
    unannotated: str


def _classes(folder: _Folder) -> tuple[list[str], MaskReader | None]:
    """Class names and the reader of masks; None if the folder has neither masks nor classes that VOC has."""
    path = folder.root / "labelmap.txt"
    if path.is_file():
        return read_label_map(path)
    found = (name for xml in folder.xmls.values() if isinstance(xml, ImageXml) for name, _ in xml.objects)
    names = sorted(set(found))
    strange = next((name for name in names if name not in VOC_CLASS_NAMES), None)
    if strange is None:
        return list(VOC_CLASS_NAMES), voc_mask_reader(len(VOC_CLASS_NAMES))
    if folder.masks:
        raise UserError(
            f"{folder.root} has masks and the class '{strange}', which is none of VOC's 20, so that nobody "
            "can tell which label of a mask is which class; expected a file labelmap.txt beside JPEGImages, "
            "with a line 'name:red,green,blue::' for the background and for each class"
        )
    check_class_names(names, folder.root / "Annotations")
    return names, None


def _names(folder: _Folder, split: str) -> list[str]:
    sets = [folder.root / "ImageSets" / kind for kind in ("Segmentation", "Main")]
    path = next((s / f"{split}.txt" for s in sets if (s / f"{split}.txt").is_file()), None)
    if path is None:
        known = sorted({file.stem for s in sets for file in s.glob("*.txt")})
        expected = f"expected one of: {', '.join(known) or '(none)'}"
        raise UserError(f"{folder.root} has no image set '{split}'; {expected}")
    lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    return list(dict.fromkeys(_name(folder, line.strip()) for line in lines if line.strip()))


def _name(folder: _Folder, line: str) -> str:
    """Image that a line names. datumaro quotes names with spaces; some tools write them with a suffix.

    Some sets of Main have a number as a second column. It is ignored, since the XML has all labels.
    """
    without_flag = re.sub(r"\s+-?[0-9]+$", "", line)
    for name in (line, without_flag):
        plain = name.strip('"')
        if plain in folder.images:
            return plain
        if plain in folder.images.get(_stem(plain), ()):
            return _stem(plain)
    return without_flag.strip('"')


def _row(folder: _Folder, name: str, class_of: Mapping[str, int]) -> SourceRow:
    xml = folder.xmls.get(name)
    found, error = _image_of(folder, name, xml.file_name if isinstance(xml, ImageXml) else "")
    path, outside = locate(folder.root / "JPEGImages", found)
    mask = folder.masks.get(name)
    mask_path, mask_outside = locate(folder.root / "SegmentationClass", mask) if mask else (None, None)
    objects = xml.objects if isinstance(xml, ImageXml) else ()
    strange = next((class_name for class_name, _ in objects if class_name not in class_of), None)
    if isinstance(xml, str):
        error = xml
    elif strange is not None:
        error = f"{PurePosixPath(name).name}.xml has class '{strange}'; expected one of labelmap.txt"
    if error or outside or mask_outside:
        return SourceRow(image_id=name, path=path, error=outside or mask_outside or error)
    told = xml is not None and (bool(objects) or folder.unannotated == "none")
    return SourceRow(
        image_id=name,
        path=path,
        image_labels=tuple(sorted({class_of[class_name] for class_name, _ in objects})) if told else None,
        stated_hw=xml.stated_hw if isinstance(xml, ImageXml) else None,
        mask_path=mask_path,
        annotations=_boxes(objects, class_of) or None,
        remarks=tuple((BOX_LEFT_OUT, told) for told in xml.bad_boxes) if isinstance(xml, ImageXml) else (),
    )


def _image_of(folder: _Folder, name: str, stated: str) -> tuple[str, str | None]:
    """File of an image in JPEGImages, and why it can't be told, if so.

    Args:
        stated: file name in its XML; it decides among several files of one name, and where none has it.
    """
    files = folder.images.get(name, ())
    beside = "".join(name.rpartition("/")[:2]) + stated.rpartition("/")[2]
    known = [file for file in (stated, beside) if file in folder.images.get(_stem(file), ())]
    images = [file for file in files if PurePosixPath(file).suffix.lower() in IMAGE_SUFFIXES] or files
    for choice in ([file for file in known if file in files], images, known):
        if len(set(choice)) == 1:
            return choice[0], None
    jpeg = f"{name}.jpg"
    if jpeg in files or not files:
        return jpeg, None
    return jpeg, f"JPEGImages has several files of this name: {', '.join(files)}; expected one"


def _boxes(objects: Iterable[tuple[str, Any]], class_of: Mapping[str, int]) -> list[dict[str, Any]]:
    """Objects with a box, as `data.schema.SourceRow` has them."""
    return [
        {
            "id": index,
            "class_index": class_of[name],
            "iscrowd": False,
            "segmentation": None,
            "bbox": box,
        }
        for index, (name, box) in enumerate(objects)
        if box is not None
    ]


def _read_xmls(folder: Path) -> dict[str, ImageXml | str]:
    names = [name for name in find_files(folder) if name.lower().endswith(".xml")]

    def read(name: str) -> ImageXml | str:
        try:
            return read_xml(folder / name)
        except OSError as error:
            return f"{PurePosixPath(name).name}: {why_unreadable(error, name)}"
        except ValueError as error:
            return str(error)

    return {_stem(name): xml for name, xml in zip(names, read_side_by_side(read, names))}


def _by_stem(files: Iterable[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in sorted(files):
        found.setdefault(_stem(name), []).append(name)
    return found


def _stem(name: str) -> str:
    """A relative path without its last suffix."""
    folder, slash, last = name.rpartition("/")
    return folder + slash + (last.rpartition(".")[0] or last)
