"""Processes that share a GPU each get their share of its memory, or are refused."""

import pytest
import torch

from ray_wsss.errors import UserError
from ray_wsss.memory import take_share_of_gpu

GIB = 2**30


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The limits that were set on a GPU of 16 GiB, 9 of which are free."""
    found: list[float] = []
    for name, answer in {
        "is_available": True,
        "mem_get_info": (9 * GIB, 16 * GIB),
        "get_device_name": "Tesla T4",
    }.items():
        monkeypatch.setattr(torch.cuda, name, lambda answer=answer: answer)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", found.append)
    return found


def test_half_a_gpu(limits: list[float]) -> None:
    take_share_of_gpu(0.5)
    assert limits == [7 / 16]  # and 1 GiB for CUDA itself


@pytest.mark.parametrize("share", [0.0, 1.0, 2.0])
def test_no_gpu_and_whole_ones_have_no_limit(limits: list[float], share: float) -> None:
    take_share_of_gpu(share)
    assert limits == []


@pytest.mark.parametrize(
    ("share", "needed"),
    [(0.75, "11.0"), (0.05, "0.0")],
    ids=["less than the share is free", "the share is less than CUDA itself takes"],
)
def test_a_share_that_is_not_there(limits: list[float], share: float, needed: str) -> None:
    told = f"Tesla T4 has 9.0 of 16.0 GiB free; expected {needed} for a process with {share} of it"
    with pytest.raises(UserError, match=told):
        take_share_of_gpu(share)
    assert limits == []
