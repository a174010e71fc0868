"""WebDataset: tars in which the files of a sample follow each other, as in ``0001.jpg``, ``0001.cls``."""

import json
import re
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple

from ray_wsss.data.images import IMAGE_SUFFIXES
from ray_wsss.data.schema import SourceRow, check_class_names
from ray_wsss.data.source import Source
from ray_wsss.data.sources.containers import MapFiles, find_containers, map_here, short_names
from ray_wsss.data.sources.label_values import Value, Values, name_classes, to_indices, to_values
from ray_wsss.data.sources.rows import SourceRows
from ray_wsss.errors import UserError
from ray_wsss.storage import parse_path

_LONGEST_LABEL = 2**20
"""Most bytes of a file of labels."""


class _Member(NamedTuple):
    key: str
    extension: str
    info: tarfile.TarInfo


class _Sample(NamedTuple):
    """What the index of a tar says about a sample."""

    key: str
    byte_range: tuple[int, int] | None
    """Offset and size of the image; None if there is none to be used."""
    values: Values
    error: str | None
    extensions: tuple[str, ...]


def read_webdataset(
    tars: Sequence[str],
    classes: Sequence[str] | None = None,
    *,
    label_key: str = "cls",
    image_key: str | None = None,
    none_label: str | None = None,
    map_files: MapFiles = map_here,
) -> Source:
    """Read the class names and one row per sample of some tars. Images stay where they are until ingest.

    A label is the text of a sample's file: names or numbers of classes, on lines of their own or joined by
    ";". Number n is the class n of ``classes``, counted from 0. A sample without that file has unknown
    labels. Samples without an image are counted by the suffix of their first file.

    Args:
        tars: paths, folders or patterns of uncompressed tars.
        classes: names of the classes in order; None: the labels that occur, sorted.
        label_key: extension of the files of labels, such as "cls" or "txt", or "json.FIELD" for a field in a
            JSON file, which may be a list.
        image_key: extension of the images; None: any image suffix, of which a sample has one.
        none_label: label of samples that have none of the classes.
        map_files: applies the index to every tar.

    Raises:
        UserError: there is no such tar, or no label and no ``classes``.
    """
    paths = find_containers(tars, ".tar")
    index = partial(index_tar, label_key=label_key, image_key=image_key, none_label=none_label)
    indexed = list(zip(paths, short_names(paths), map_files(index, paths)))
    passed_over: Counter[str] = Counter()
    values: set[Value] = set()
    for _, _, samples in indexed:
        for sample in samples:
            if sample.byte_range is not None:
                values.update(sample.values or ())
            elif sample.error is None:
                passed_over[f".{sample.extensions[0]}"] += 1
    class_names = list(classes) if classes is not None else name_classes(values)
    if not class_names:
        raise UserError(
            f"{paths[0]} has no label in files of .{label_key}; expected another --label-key, or a file "
            "of class names (--classes)"
        )
    check_class_names(class_names, parse_path(paths[0]))

    def rows() -> Iterator[SourceRow]:
        for path, name, samples in indexed:
            for sample in samples:
                if sample.byte_range is not None or sample.error is not None:
                    yield _row(sample, path, name, class_names, classes is not None)

    return Source(
        kind="webdataset", class_names=class_names, rows=SourceRows.of(rows()), passed_over=passed_over
    )


def index_tar(path: str, *, label_key: str, image_key: str | None, none_label: str | None) -> list[_Sample]:
    """The samples of a tar, of which only headers and labels are read."""
    samples: list[_Sample] = []
    field = label_key.removeprefix("json.") if label_key.startswith("json.") else None
    extension = "json" if field is not None else label_key.lstrip(".").lower()
    try:
        with parse_path(path).open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for key, group in groupby(_members(tar), key=lambda member: member.key):
                members = list(group)
                label = next((m for m in members if m.extension == extension), None)
                text = _text(tar, label) if label is not None else None
                samples.append(_sample(key, members, text, field, image_key, none_label))
            # A damaged header ends the iteration as the end does, which is a block of zeros.
            file.seek(tar.offset)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError("no end mark")
    except (tarfile.TarError, OSError, EOFError) as error:
        reason = f"the tar can't be read beyond {len(samples)} samples ({error}); expected a plain .tar"
        samples.append(_Sample("", None, None, reason, ()))
    return samples


def _members(tar: tarfile.TarFile) -> Iterator[_Member]:
    for info in tar:
        match = re.match(
            r"((?:.*/)?[^./][^./]*)\.([^/]+)$", info.name
        )  # as the library webdataset splits names
        if match is not None and info.isreg() and not info.issparse():
            yield _Member(match[1].removeprefix("./"), match[2].lower(), info)


def _text(tar: tarfile.TarFile, label: _Member) -> bytes:
    file = tar.extractfile(label.info)
    return file.read(_LONGEST_LABEL) if file is not None else b""


def _sample(
    key: str,
    members: Sequence[_Member],
    text: bytes | None,
    field: str | None,
    image_key: str | None,
    none_label: str | None,
) -> _Sample:
    extensions = tuple(member.extension for member in members)
    wanted = {image_key.lstrip(".").lower()} if image_key is not None else {s[1:] for s in IMAGE_SUFFIXES}
    images = [member for member in members if member.extension in wanted]
    if len(images) > 1:
        names = ", ".join(image.extension for image in images)
        return _Sample(
            key, None, None, f"its sample has several images: {names}; choose by --image-key", extensions
        )
    byte_range = (images[0].info.offset_data, images[0].info.size) if images else None
    try:
        values = to_values(_parsed(text, field), none_label) if text is not None else None
    except ValueError as error:
        return _Sample(key, byte_range, None, str(error), extensions)
    return _Sample(key, byte_range, values, None, extensions)


def _parsed(text: bytes, field: str | None) -> Any:
    """Labels in a file. Raises ValueError if they can't be read."""
    if field is not None:
        try:
            content = json.loads(text)
        except (ValueError, RecursionError):
            raise ValueError("its .json is not valid JSON") from None
        if not isinstance(content, dict):
            raise ValueError("its .json is no object with fields")
        return content.get(field)
    try:
        words = [word.strip() for word in re.split(r"[;\n]", text.decode("utf-8-sig"))]
    except UnicodeDecodeError:
        raise ValueError("its file of labels is not UTF-8 text") from None
    found = [int(word) if re.fullmatch(r"-?\d{1,9}", word) else word for word in words if word]
    return found or None


def _row(sample: _Sample, path: str, name: str, class_names: Sequence[str], numbered: bool) -> SourceRow:
    image_id = f"{name}/{sample.key}" if sample.key else name
    error, labels = sample.error, None
    try:
        labels = to_indices(sample.values, class_names, numbered)
    except ValueError as problem:
        error = error or str(problem)
    return SourceRow(
        image_id=image_id, path=path, image_labels=labels, byte_range=sample.byte_range, error=error
    )
