"""The order of training: pure functions of where images are stored, the seed, and nothing else.

A loader process reads a row group as a whole, or a large one piece by piece. Every image of a batch comes
from a lane: a sequence of groups of its own. A rank always has the same positions of a batch, so it reads
only the groups of its lanes, and the global batch is the same for any number of workers.

Times that each stored byte is read per epoch, simulated by tests/unit/training/test_order.py for 41,000
images of 160 kB, 64 to a row group. In brackets: ray_wsss 0.1, where every process read every group.

    ranks x loader processes   1 x 0     1 x 2     8 x 2       8 x 4       64 x 2
    global batch               16        16        16          16          64
    all processes together     1.0 (1)   1.0 (2)   1.0 (16)    1.0 (28)    1.7 (51)
    per node of 8 ranks        1.0 (1)   1.0 (2)   1.0 (16)    1.0 (28)    0.2 (6)

If the number of a rank's loader processes does not divide the batches of a period (`plan_lanes`), several
read the same lanes (1 x 3: 2.5), because the images of a global batch must not depend on that number. They do
so at about the same time, so that the cache of the operating system serves all but the first of a node. An
object store has no such cache.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Sampler

Key = tuple[int, int]
"""(draw, index): iteration x batch size + position in the batch, and the image's index in the crops."""

WINDOW = 64
"""Most pieces that are drawn from at a time."""
_LEAST_SHARED_WINDOW = 16
"""Least window to divide among consecutive batches: each should draw from 8 pieces or so."""
_MOST_BATCHES = 8
"""Most consecutive batches whose lanes differ."""


def plan_lanes(batch_size: int, window: int) -> tuple[int, int]:
    """Period and number of lanes. Position p of the endless sequence draws from this lane:

        p % period * lanes // period

    The period is 2, 4 or 8 batches, or 1 if the window is small. If a rank's number of loader processes
    divides that, each of them has lanes of its own, because DataLoader deals whole batches in turn. There are
    at most ``window`` lanes, since a process that has all lanes must hold a piece of each.
    """
    batches = 2 if window >= _LEAST_SHARED_WINDOW else 1
    while 1 < batches < _MOST_BATCHES and 2 * batches * batch_size <= window:
        batches *= 2
    period = batches * batch_size
    # Lanes that divide the period end where the shares of the ranks do.
    even = [lanes for lanes in range(window // 2 + 1, window + 1) if period % lanes == 0]
    return period, min(period, max(even, default=window))


def epoch_order(
    groups: Sequence[int],
    pieces: Sequence[int] | None = None,
    *,
    seed: int,
    epoch: int,
    batch_size: int,
    window: int = WINDOW,
) -> list[int]:
    """Order of the images in one epoch: a permutation, the same for any number of workers.

    The groups are shuffled and cut into one run for each lane (`plan_lanes`). A lane goes through its run
    ``window`` / lanes pieces at a time, which are shuffled together. At most ``window`` pieces are drawn from
    at a time, from all over the data set, however large its groups are and however it is sorted. A data set
    of at most ``window`` pieces is shuffled as a whole.

    Args:
        groups: row group of each image, in the order of the data set.
        pieces: piece of its group that each image is in; None if no group is cut.
        batch_size: number of images in a global batch.
        window: number of pieces that a reader's cache holds.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    places = np.stack([groups, pieces if pieces is not None else np.zeros(len(groups), np.int64)])
    if _starts(places).sum() <= window:
        return torch.randperm(len(groups), generator=generator).tolist()
    period, lanes = plan_lanes(batch_size, window)
    positions = epoch * len(groups) + np.arange(len(groups))
    lane_of_position = positions % period * lanes // period
    line = _shuffle_runs(places[0], generator)
    # Each lane gets as many consecutive images of the line as it has positions. Neighbouring lanes get
    # distant ones, since a batch draws from neighbouring lanes.
    dealt = torch.randperm(lanes, generator=generator).numpy()
    lane = np.repeat(dealt, np.bincount(lane_of_position, minlength=lanes)[dealt])
    first_of_lane = _starts(lane[None])
    began = _starts(np.stack([*places[:, line], lane])).cumsum()
    began_in_lane = began - began[first_of_lane][first_of_lane.cumsum() - 1]
    block = began_in_lane // max(1, window // lanes)
    drawn = torch.rand(len(line), generator=generator, dtype=torch.float64).numpy()
    order = np.empty_like(line)
    order[np.argsort(lane_of_position, kind="stable")] = line[np.lexsort((drawn, block, lane))]
    return order.tolist()


def _starts(columns: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(N,): whether column i of (K, N) differs from the one before it; the first one does."""
    return np.append(True, (columns[:, 1:] != columns[:, :-1]).any(0))


def _shuffle_runs(groups: NDArray[np.int64], generator: torch.Generator) -> NDArray[np.int64]:
    """Indices of the images, with runs of equal groups shuffled and each run kept in order."""
    run = _starts(groups[None]).cumsum() - 1
    rank = torch.randperm(int(run[-1]) + 1, generator=generator).numpy()
    return np.argsort(rank[run], kind="stable")


class IterationBatches(Sampler[list[Key]]):
    """A rank's share of the global batch of each iteration from ``start`` to ``stop`` - 1.

    The global batches cut up one endless sequence of images: epoch 0, epoch 1, ... The sequence is the same
    for any number of workers, and starting at iteration k gives the batches after the first k iterations.
    ``groups``, ``pieces`` and ``window`` are those of `epoch_order`.
    """

    def __init__(
        self,
        groups: Sequence[int],
        pieces: Sequence[int] | None = None,
        *,
        batch_size: int,
        seed: int,
        start: int,
        stop: int,
        rank: int,
        world_size: int,
        window: int = WINDOW,
    ) -> None:
        assert batch_size % world_size == 0
        self.groups, self.pieces, self.batch_size, self.seed = groups, pieces, batch_size, seed
        self.start, self.stop, self.window = start, stop, window
        share = batch_size // world_size
        self.mine = range(rank * share, (rank + 1) * share)

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[list[Key]]:
        epoch, order = -1, []
        for iteration in range(self.start, self.stop):
            batch = []
            for p in (iteration * self.batch_size + offset for offset in self.mine):
                if p // len(self.groups) != epoch:
                    epoch = p // len(self.groups)
                    order = self._order(epoch)
                batch.append((p, order[p % len(self.groups)]))
            yield batch

    def _order(self, epoch: int) -> list[int]:
        return epoch_order(
            self.groups,
            self.pieces,
            seed=self.seed,
            epoch=epoch,
            batch_size=self.batch_size,
            window=self.window,
        )
