"""What a run reports, and how it finds the first loss that is not finite among several workers."""

import math
import time

import pytest
import torch

from ray_wsss.training.loss_meter import Meter


class Worker:
    """One of two workers, who adds up what both send as an all-reduce would."""

    world_size = 2

    def __init__(self, rank: int, others: list[torch.Tensor]) -> None:
        self.rank, self.sent, self.others = rank, [], iter(others)

    def mean_over_workers(self, value: torch.Tensor) -> torch.Tensor:
        self.sent.append(value)
        return (value + next(self.others, torch.zeros_like(value))) / 2


def images_of(iteration: int, rank: int) -> list[str]:
    return [f"image {iteration} of {rank}"]


def filled(**losses: list[float]) -> Meter:
    meter = Meter()
    for iteration in range(4):
        meter.add(
            10 + iteration,
            {name: torch.tensor(v[iteration]) for name, v in losses.items() if not math.isinf(v[iteration])},
        )
    return meter


def test_means_over_iterations_and_workers_and_a_new_start():
    meter = filled(cls=[1.0, 2.0, 3.0, 6.0], cpm=[math.inf, math.inf, 5.0, 7.0])  # from its warm-up on
    metrics = meter.take(Worker(0, [torch.tensor([5.0, 0.0])]), images_of)
    assert metrics["loss_cls"] == 4
    assert metrics["loss_cpm"] == 3
    assert 0 <= metrics["data_wait_s"] <= metrics["seconds_per_step"]
    assert "loss_cls" not in meter.take(Worker(0, []), images_of)


def test_waiting_for_data_is_counted():
    def slow():
        for k in range(3):
            time.sleep(0.02)
            yield k

    meter = Meter()
    for iteration, _ in enumerate(meter.timed(slow())):
        meter.add(iteration, {"cls": torch.tensor(0.0)})
    metrics = meter.take(Worker(0, []), images_of)
    assert metrics["data_wait_s"] >= 0.02
    assert metrics["seconds_per_step"] >= metrics["data_wait_s"]


@pytest.mark.parametrize("rank", [0, 1])
def test_all_workers_name_the_first_bad_loss_of_any(rank):
    meters = [
        filled(cls=[1.0, 1.0, 1.0, math.nan], cpm=[1.0, 1.0, math.nan, math.nan]),
        filled(cls=[1.0, 1.0, 1.0, 1.0], cpm=[1.0, 1.0, 1.0, 1.0]),
    ]
    sent = []
    for k in (1, 0):  # each worker once, to learn what it sends
        worker = Worker(k, [torch.full((2,), math.nan)])
        with pytest.raises(FloatingPointError):
            meters[k].take(worker, images_of)
        sent.insert(0, worker.sent)
    with pytest.raises(FloatingPointError) as error:
        meters[rank].take(Worker(rank, sent[1 - rank]), images_of)
    assert str(error.value) == "cpm is not finite at iteration 13 for image 12 of 0"
