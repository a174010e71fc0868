"""The order of training: the same for any number of workers, well mixed, and read about once."""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest

from ray_wsss.data.piece_streams import PieceStreams, rows_per_piece
from ray_wsss.training.order import WINDOW, IterationBatches, Key, epoch_order, plan_lanes

PIECE = pa.RecordBatch.from_pydict({"image": [b""]})
CACHE_BYTES = 256 * 2**20


def layout(images: int, rows_per_group: int, image_bytes: int) -> tuple[list[int], list[int], int]:
    """Groups, pieces and window of a data set, as `ShardReader` and `TrainingCrops` have them."""
    rows = rows_per_piece(rows_per_group, rows_per_group * image_bytes)
    groups = [image // rows_per_group for image in range(images)]
    pieces = [image % rows_per_group // rows for image in range(images)]
    return groups, pieces, min(WINDOW, CACHE_BYTES // (rows * image_bytes))


LAYOUTS = {
    "scenes": layout(6_400, 64, 3_000),
    "coco": layout(12_000, 64, 160_000),
    "photos of version 0.1": layout(2_000, 64, 3_000_000),
    "photos": layout(2_000, 5, 3_000_000),
}


def batches_of(
    name: str, batch_size: int, rank: int = 0, world_size: int = 1, start: int = 0, stop: int = 400
) -> list[list[Key]]:
    groups, pieces, window = LAYOUTS[name]
    batches = IterationBatches(
        groups,
        pieces,
        batch_size=batch_size,
        seed=3,
        start=start,
        stop=stop,
        rank=rank,
        world_size=world_size,
        window=window,
    )
    return list(batches)


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize(("batch_size", "world_size"), [(16, 2), (16, 16), (12, 3), (34, 17)])
def test_global_batches_and_resuming(name, batch_size, world_size):
    whole = batches_of(name, batch_size)
    ranks = [batches_of(name, batch_size, rank, world_size) for rank in range(world_size)]
    assert [list(chain(*parts)) for parts in zip(*ranks)] == whole
    assert batches_of(name, batch_size, start=177) == whole[177:]


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("batch_size", [1, 4, 7, 16, 17, 200])
def test_every_image_once_per_epoch_in_another_order(name, batch_size):
    groups, pieces, window = LAYOUTS[name]
    orders = [
        epoch_order(groups, pieces, seed=seed, epoch=epoch, batch_size=batch_size, window=window)
        for seed, epoch in [(0, 0), (0, 1), (1, 0)]
    ]
    assert all(sorted(order) == list(range(len(groups))) for order in orders)
    assert len(set(map(tuple, orders))) == 3


def test_a_small_data_set_is_shuffled_as_a_whole():
    groups = [image // 100 for image in range(400)]
    order = epoch_order(groups, seed=0, epoch=0, batch_size=4, window=4)
    assert order == epoch_order([0] * 400, seed=0, epoch=0, batch_size=4, window=4)
    assert order != epoch_order(groups, seed=0, epoch=0, batch_size=4, window=3)


@pytest.mark.parametrize("batch_size", [1, 3, 8, 16, 17, 24, 48, 256])
@pytest.mark.parametrize("window", [1, 2, 5, 16, 25, 64])
def test_lanes_fit_into_the_window(batch_size, window):
    period, lanes = plan_lanes(batch_size, window)
    assert period in [batches * batch_size for batches in ([2, 4, 8] if window >= 16 else [1])]
    assert min(period, window // 2) <= lanes <= min(period, window)


# Mixing


def spread(order: Sequence[int], class_of: Sequence[int], batch_size: int) -> tuple[float, float]:
    """Share of batches of a single class, and mean number of classes in a batch."""
    whole = len(order) // batch_size * batch_size
    batches = np.array([class_of[image] for image in order[:whole]]).reshape(-1, batch_size)
    counts = np.array([len(set(batch)) for batch in batches.tolist()])
    return float((counts == 1).mean()), float(counts.mean())


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("batch_size", [8, 16, 32])
@pytest.mark.parametrize("classes", [2, 80])
def test_sorted_data_sets_are_mixed_like_by_a_perfect_shuffle(name, batch_size, classes):
    groups, pieces, window = LAYOUTS[name]
    class_of = [image * classes // len(groups) for image in range(len(groups))]
    ours, perfect = [], []
    for epoch in range(4):
        order = epoch_order(groups, pieces, seed=0, epoch=epoch, batch_size=batch_size, window=window)
        ours.append(spread(order, class_of, batch_size))
        shuffled = np.random.default_rng(epoch).permutation(len(groups)).tolist()
        perfect.append(spread(shuffled, class_of, batch_size))
    (single, kinds), (best_single, most_kinds) = np.mean(ours, 0), np.mean(perfect, 0)
    assert single <= best_single + 0.01
    assert kinds >= 0.9 * most_kinds


def test_a_window_of_one_group_would_not_mix():
    """The measure above finds a data set that is read group by group."""
    groups = LAYOUTS["photos of version 0.1"][0]
    order = epoch_order(groups, seed=0, epoch=0, batch_size=16, window=1)
    assert spread(order, [image // 1000 for image in range(2000)], 16)[0] > 0.9


# Reads


class Reads:
    """Reads of a process: those of the data set reader, on a file that counts the pieces it hands out."""

    def __init__(self, cached: int) -> None:
        self.cached, self.count = cached, 0
        self.cache: OrderedDict[tuple[int, int], None] = OrderedDict()
        self.streams = PieceStreams(lambda path: cast(Any, self))

    def iter_batches(self, rows: int, **arguments: object) -> Iterator[pa.RecordBatch]:
        while True:
            self.count += 1
            yield PIECE

    def read(self, group: int, piece: int) -> None:
        if (group, piece) not in self.cache:
            self.streams.read(Path("shard"), group, "image", piece, 1)
        self.cache[group, piece] = None
        self.cache.move_to_end((group, piece))
        if len(self.cache) > self.cached:
            self.cache.popitem(last=False)


def reads_per_byte(
    made: tuple[list[int], list[int], int], batch_size: int, ranks: int, processes: int
) -> float:
    """Times that each byte is read in the second epoch, by all loader processes together."""
    groups, pieces, window = made
    per_epoch = -(-len(groups) // batch_size)
    count = 0
    for rank in range(ranks):
        loaders = [Reads(window) for _ in range(max(1, processes))]
        batches = IterationBatches(
            groups,
            pieces,
            batch_size=batch_size,
            seed=0,
            start=0,
            stop=2 * per_epoch,
            rank=rank,
            world_size=ranks,
            window=window,
        )
        for iteration, batch in enumerate(batches):
            loader = loaders[iteration % len(loaders)]  # as DataLoader deals batches
            if iteration == per_epoch:
                count -= sum(loader.count for loader in loaders)
            for _, image in batch:
                loader.read(groups[image], pieces[image])
        count += sum(loader.count for loader in loaders)
    return count / len(set(zip(groups, pieces)))


@pytest.mark.parametrize(
    ("ranks", "processes", "batch_size"), [(1, 0, 16), (1, 2, 16), (1, 4, 16), (8, 2, 16), (64, 2, 64)]
)
def test_each_byte_is_read_about_once_per_node(ranks, processes, batch_size):
    nodes = max(1, ranks // 8)
    reads = reads_per_byte(layout(40_960, 64, 160_000), batch_size, ranks, processes)
    assert 0.9 < reads < max(1.1, 0.5 * nodes)
