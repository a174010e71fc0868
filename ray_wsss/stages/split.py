"""Split: divide a data set's images among several data sets, with equal shares of each class."""

import hashlib
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ray_wsss.config.decode import DecodeConfig
from ray_wsss.data.reader import ShardReader, open_shard, shard_paths
from ray_wsss.data.schema import DatasetMetadata, unknown_as_null, write_table_atomically
from ray_wsss.data.source import Source
from ray_wsss.errors import UserError
from ray_wsss.runs.read_chunks import Chunk, plan_chunks, read_chunk
from ray_wsss.stages.ingest import ShardSummary, begin_ingest, finish_ingest, part_path

_NONE, _UNKNOWN = -1, -2
"""Stand for a class in images without one and in those of unknown labels, which are shared out too."""


def describe_images(chunk: Chunk) -> pa.Table:
    """For each image of a chunk, a digest of its bytes (``digest``) and its labels (``image_labels``)."""
    rows = read_chunk(chunk, ["image", "image_labels"])
    digests = [hashlib.sha256(image).digest()[:16] for image in rows["image"].to_pylist()]
    return pa.table({"digest": pa.array(digests, pa.binary(16)), "image_labels": rows["image_labels"]})


def divide(images: pa.Table, fractions: Sequence[float], seed: int) -> list[NDArray[np.int64]]:
    """Divide images into parts: the rows of each part, ascending; equal arguments give equal parts.

    Images of equal bytes stay together. Every class, none of the classes, and unknown labels are shared out
    in proportion to ``fractions``, by iterative stratification: the rarest class that is left goes first, and
    each of its images to the part that lacks most of that class (Sechidis et al., "On the Stratification of
    Multi-Label Data", 2011).

    Args:
        images: rows of `describe_images`, of all chunks in order.
        fractions: size of each part as a share of all images; they add up to 1.
    """
    group_of = images["digest"].combine_chunks().dictionary_encode().indices.to_numpy()
    labels_of = _labels_of_groups(group_of, images["image_labels"])
    sizes = np.bincount(group_of)
    part_of = np.asarray(_stratify(labels_of, sizes.tolist(), fractions, seed))[group_of]
    return [np.flatnonzero(part_of == part) for part in range(len(fractions))]


def _labels_of_groups(group_of: NDArray[np.integer], labels: pa.ChunkedArray) -> list[tuple[int, ...]]:
    """Labels of each group of equal images: those of all its members."""
    found: list[tuple[int, ...]] = [()] * (int(group_of.max(initial=-1)) + 1)
    sets: dict[tuple[int, ...], tuple[int, ...]] = {}
    for group, classes in zip(group_of.tolist(), labels.to_pylist()):
        own = (_UNKNOWN,) if classes is None else tuple(classes) or (_NONE,)
        both = tuple(sorted({*found[group], *own}))
        found[group] = sets.setdefault(both, both)
    return found


def _stratify(
    labels_of: Sequence[tuple[int, ...]], sizes: Sequence[int], fractions: Sequence[float], seed: int
) -> list[int]:
    """Part of each group."""
    order = list(range(len(labels_of)))
    random.Random(seed).shuffle(order)
    members: dict[int, list[int]] = {}
    left: dict[int, int] = {}
    for group in order:
        for label in labels_of[group]:
            members.setdefault(label, []).append(group)
            left[label] = left.get(label, 0) + sizes[group]
    lacking = {label: [count * share for share in fractions] for label, count in left.items()}
    room = [sum(sizes) * share for share in fractions]
    part_of = [-1] * len(labels_of)
    while left:
        rarest = min(left, key=lambda label: (left[label], label))
        for group in members[rarest]:
            if part_of[group] >= 0:
                continue
            # Of equal parts, the one with most room; of these, the first.
            part = max(range(len(fractions)), key=lambda k: (lacking[rarest][k], room[k]))
            part_of[group] = part
            room[part] -= sizes[group]
            for label in labels_of[group]:
                lacking[label][part] -= sizes[group]
                if label in left:
                    left[label] -= sizes[group]
        del left[rarest]
    return part_of


class CopyShard:
    """Writes rows of a data set as a shard of another one.

    Args:
        dataset: folder of the data set that is read.
    """

    def __init__(self, dataset: Path) -> None:
        self.dataset = dataset

    def __call__(self, rows: Sequence[int], out: Path, shard_index: int) -> ShardSummary:
        """Write ``out/shards/part-XXXXX.parquet`` with the rows of these indices, in ascending order."""
        reader = ShardReader(self.dataset)
        with open_shard(shard_paths(self.dataset)[0]) as file:
            schema = unknown_as_null(file.schema_arrow.empty_table()).schema
        table = pa.Table.from_pylist([reader.read(row, schema.names) for row in rows], schema=schema)
        write_table_atomically(table, part_path(out, shard_index))
        return ShardSummary.of(
            table["image_labels"].to_pylist(),
            table["image"].to_pylist(),
            with_mask=len(table) - table["mask"].null_count,
            objects=table["objects"].to_pylist() if "objects" in schema.names else (),
            remarks=self._remarks(table["image_id"]),
        )

    def _remarks(self, image_ids: pa.ChunkedArray) -> list[tuple[str, str, str, str]]:
        path = self.dataset / "remarks.parquet"
        if not path.exists():
            return []
        with open_shard(path) as file:
            remarks = file.read()
        ours = set(image_ids.to_pylist())
        found = (remark for remark in remarks.to_pylist() if remark["image_id"] in ours)
        return [(r["image_id"], r["path"], r["remark"], r["detail"]) for r in found]


def split_here(dataset: Path, outs: Sequence[Path], fractions: Sequence[float], seed: int) -> None:
    """Divide few images among new data sets in this process; for many, `cluster.stages.split.run_split`.

    Data sets of ``outs`` that are there already stay.

    Raises:
        UserError: a part would have no image, or as `stages.ingest.begin_ingest`.
    """
    metadata = DatasetMetadata.load(dataset)
    images = pa.concat_tables(describe_images(chunk) for chunk in plan_chunks(dataset))
    source = Source(kind=metadata.source, class_names=metadata.class_names, rows=())
    decode = DecodeConfig.from_noted(dict(metadata.decode))
    for out, rows in zip(outs, divide(images, fractions, seed)):
        if not len(rows):
            raise UserError(f"{out} would have no image; expected more images in {dataset}, or fewer parts")
        if not (out / "metadata.json").exists():
            begin_ingest(out)
            copied = CopyShard(dataset)(rows.tolist(), out, 0)
            finish_ingest(out, source, [copied], order_seed=metadata.order_seed, decode=decode)


def check_fractions(fractions: Sequence[float], parts: int) -> None:
    """Raise UserError unless there is a fraction above 0 for each part, and they add up to 1."""
    if len(fractions) != parts:
        raise UserError(
            f"--fractions has {len(fractions)} numbers for {parts} folders; expected one for each"
        )
    if min(fractions, default=0) <= 0 or abs(sum(fractions) - 1) > 1e-6:
        shown = " ".join(f"{fraction:g}" for fraction in fractions)
        raise UserError(f"--fractions is {shown}; expected numbers above 0 that add up to 1")
