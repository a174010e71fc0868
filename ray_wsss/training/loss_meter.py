"""Mean losses and step times of a training run, and the check that its losses are finite."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor


class Workers(Protocol):
    """The part of `training.loop.Session` that the meter needs."""

    rank: int
    world_size: int

    def mean_over_workers(self, value: Tensor) -> Tensor: ...


class Meter:
    """Collects losses between two reports, on the device: reading them in each step would make it idle."""

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self.losses: dict[str, list[Tensor]] = {}
        self.iterations: dict[str, list[int]] = {}
        self.waited_s = 0.0
        self.steps = 0
        self.started = time.perf_counter()

    def timed(self, batches: Iterable[Any]) -> Iterator[Any]:
        """Yield the batches unchanged, and add up the time spent waiting for them."""
        iterator = iter(batches)
        while True:
            started = time.perf_counter()
            batch = next(iterator, None)
            self.waited_s += time.perf_counter() - started
            if batch is None:
                return
            yield batch

    def restart_clock(self) -> None:
        """Start timing the steps now; validation and checkpoints since the last report don't count."""
        self.started = time.perf_counter()

    def add(self, iteration: int, parts: dict[str, Tensor]) -> None:
        """Add the losses (scalars) of an iteration, by name."""
        self.steps += 1
        for name, value in parts.items():
            self.losses.setdefault(name, []).append(value.detach())
            self.iterations.setdefault(name, []).append(iteration)

    def take(self, workers: Workers, images_of: Callable[[int, int], list[str]]) -> dict[str, float]:
        """Mean losses over iterations and workers, and this worker's seconds per step; then start anew.

        ``seconds_per_step`` includes ``data_wait_s``, the time spent waiting for data. The host waits for
        the device here, and only here.

        Args:
            images_of: (iteration, rank) -> image ids of that worker's share, for the error message.

        Raises:
            FloatingPointError: a loss was not finite on some worker; all workers raise it.
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
        """Message about the losses that failed first: "cpm is not finite at iteration 7 for 2007_000032"."""
        # (worker, loss): 1 + the position of the first value that is not finite; 0 if all are finite.
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
