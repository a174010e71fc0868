"""What a training run reports: means of its losses, where its time goes, and that it is still sound."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor


class Workers(Protocol):
    """What the meter needs to know of the place a loop runs in (`training.loop.Session`)."""

    rank: int
    world_size: int

    def mean_over_workers(self, value: Tensor) -> Tensor: ...


class Meter:
    """Losses since the last report, kept on the device so that no step waits for the host."""

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self.losses: dict[str, list[Tensor]] = {}
        self.iterations: dict[str, list[int]] = {}
        self.waited_s = 0.0
        self.steps = 0
        self.started = time.perf_counter()

    def timed(self, batches: Iterable[Any]) -> Iterator[Any]:
        """The same batches; what one has to be waited for is counted."""
        iterator = iter(batches)
        while True:
            started = time.perf_counter()
            batch = next(iterator, None)
            self.waited_s += time.perf_counter() - started
            if batch is None:
                return
            yield batch

    def restart_clock(self) -> None:
        """Leave out the time since the last report, which no step took."""
        self.started = time.perf_counter()

    def add(self, iteration: int, parts: dict[str, Tensor]) -> None:
        """Note the losses (scalars) of an iteration."""
        self.steps += 1
        for name, value in parts.items():
            self.losses.setdefault(name, []).append(value.detach())
            self.iterations.setdefault(name, []).append(iteration)

    def take(self, workers: Workers, images_of: Callable[[int, int], list[str]]) -> dict[str, float]:
        """Means by name over iterations and workers, and seconds per step, waiting for data included.

        Starts anew. The host waits here, and only here, for the device.

        Args:
            images_of: (iteration, rank) -> image ids of that worker's share, for the message.

        Raises:
            FloatingPointError: on all workers alike, where a loss was not finite on any.
        """
        now = time.perf_counter()
        steps = max(1, self.steps)
        means = [torch.stack(values).mean() for values in self.losses.values()]
        losses = workers.mean_over_workers(torch.stack(means)).tolist() if means else []
        if not all(map(math.isfinite, losses)):
            raise FloatingPointError(self._what_failed(workers, images_of))
        result = {f"loss_{name}": value for name, value in zip(self.losses, losses)}
        result |= {"seconds_per_step": (now - self.started) / steps, "data_wait_s": self.waited_s / steps}
        self._begin()
        return result

    def _what_failed(self, workers: Workers, images_of: Callable[[int, int], list[str]]) -> str:
        """The first of them, such as "cpm is not finite at iteration 7 for 2007_000032"."""
        # Per worker and part, 1 + the position of its first bad value; 0 where all are good.
        found = torch.zeros(workers.world_size, len(self.losses))
        for part, values in enumerate(self.losses.values()):
            bad = ~torch.stack(values).isfinite()
            found[workers.rank, part] = (bad.long().argmax() + 1) * bad.any()
        device = next(iter(self.losses.values()))[0].device
        found = (workers.mean_over_workers(found.to(device)) * workers.world_size).round().long().tolist()
        names = list(self.losses)
        failures = [
            (self.iterations[names[part]][at - 1], rank, names[part])
            for rank, row in enumerate(found)
            for part, at in enumerate(row)
            if at
        ]
        if not failures:
            return f"the sum of {', '.join(names)} overflows"
        first = min(iteration for iteration, _, _ in failures)
        ranks = sorted({rank for iteration, rank, _ in failures if iteration == first})
        parts = [name for name in names if any(f[0] == first and f[2] == name for f in failures)]
        images = [image_id for rank in ranks for image_id in images_of(first, rank)]
        what = f"{', '.join(parts)} {'is' if len(parts) == 1 else 'are'} not finite"
        return f"{what} at iteration {first + 1} for {', '.join(images)}"
