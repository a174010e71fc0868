"""WebDataset: tars in which the files of a sample follow each other, as in ``0001.jpg``, ``0001.cls``."""

import json
import re
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain, groupby
from typing import Any, NamedTuple

import pyarrow as pa

from ray_wsss.data.image_files.formats import IMAGE_SUFFIXES
from ray_wsss.data.schema import SourceRow, check_class_names
from ray_wsss.data.source import Source
from ray_wsss.data.sources.containers import MapFiles, find_containers, map_here, short_names
from ray_wsss.data.sources.label_values import Value, Values, name_classes, to_indices, to_values
from ray_wsss.data.sources.rows import SourceRows
from ray_wsss.errors import UserError
from ray_wsss.storage import parse_path, printable

_LONGEST_LABEL = 2**20
"""Most bytes of a file of labels."""
_ROWS_AT_A_TIME = 2**14


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
    extension: str
    """Extension of the first file."""


_INDEX = pa.schema(
    [
        ("key", pa.string()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("values", pa.string()),  # JSON
        ("error", pa.string()),
        ("extension", pa.string()),
    ]
)


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
    indexed: list[pa.Table] = list(map_files(index, paths))
    passed_over: Counter[str] = Counter()
    values: set[Value] = set()
    for samples in indexed:
        for text in samples["values"].filter(samples["offset"].is_valid()).unique().to_pylist():
            values.update(json.loads(text) if text is not None else ())
        left = samples.filter(samples["offset"].is_null())
        left = left.filter(left["error"].is_null())
        passed_over.update(
            f".{extension}" if extension else "" for extension in left["extension"].to_pylist()
        )
    class_names = list(classes) if classes is not None else name_classes(values)
    if not class_names:
        raise UserError(
            f"{paths[0]} has no label in files of .{label_key}; expected another --label-key, or a file "
            "of class names (--classes)"
        )
    check_class_names(class_names, parse_path(paths[0]))

    def rows() -> Iterator[SourceRow]:
        for path, name, samples in zip(paths, short_names(paths), indexed):
            yield from _rows(path, name, samples, class_names, classes is not None)

    return Source(
        kind="webdataset", class_names=class_names, rows=SourceRows.of(rows()), passed_over=passed_over
    )


def index_tar(path: str, *, label_key: str, image_key: str | None, none_label: str | None) -> pa.Table:
    """The samples of a tar as a table; only headers and labels are read."""
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
        samples.append(_Sample("", None, None, reason, ""))
    return pa.Table.from_pylist([_described(sample) for sample in samples], schema=_INDEX)


def _described(sample: _Sample) -> dict[str, Any]:
    offset, size = sample.byte_range or (None, None)
    values = None if sample.values is None else json.dumps(sorted(sample.values, key=str))
    key, extension = printable(sample.key), printable(sample.extension)
    error = None if sample.error is None else printable(sample.error)
    return {
        "key": key,
        "offset": offset,
        "size": size,
        "values": values,
        "error": error,
        "extension": extension,
    }


def _members(tar: tarfile.TarFile) -> Iterator[_Member]:
    for info in filter(tarfile.TarInfo.isreg, tar):
        # The key ends at the first full stop of the name, as in the library webdataset.
        match = re.match(r"((?:.*/)?[^./][^./]*)\.([^/]+)$", info.name)
        if match is None or info.issparse():
            yield _Member(info.name, "", info)
        else:
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
    first = members[0].extension
    wanted = {image_key.lstrip(".").lower()} if image_key is not None else {s[1:] for s in IMAGE_SUFFIXES}
    images = [member for member in members if member.extension in wanted]
    if len(images) > 1:
        names = ", ".join(image.extension for image in images)
        reason = f"its sample has several images: {names}; choose by --image-key"
        return _Sample(key, None, None, reason, first)
    byte_range = (images[0].info.offset_data, images[0].info.size) if images else None
    try:
        values = to_values(_parsed(text, field), none_label) if text is not None else None
    except ValueError as error:
        return _Sample(key, byte_range, None, str(error), first)
    return _Sample(key, byte_range, values, None, first)


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


def _rows(
    path: str, name: str, samples: pa.Table, class_names: Sequence[str], numbered: bool
) -> Iterator[SourceRow]:
    for sample in chain.from_iterable(batch.to_pylist() for batch in samples.to_batches(_ROWS_AT_A_TIME)):
        error, labels = sample["error"], None
        if sample["offset"] is None and error is None:
            continue
        try:
            values = None if sample["values"] is None else frozenset(json.loads(sample["values"]))
            labels = to_indices(values, class_names, numbered)
        except ValueError as problem:
            error = error or str(problem)
        yield SourceRow(
            image_id=f"{name}/{sample['key']}" if sample["key"] else name,
            path=path,
            image_labels=labels,
            byte_range=None if sample["offset"] is None else (sample["offset"], sample["size"]),
            error=error,
        )
