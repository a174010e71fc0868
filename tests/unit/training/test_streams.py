"""Images are copied to a GPU on a stream of their own; nothing is read too soon, however late it works."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from fake_gpu import FakeGpuWithStreams, Race, SourceChanged, fake_driver
from torch import Tensor

from ray_wsss.data.scenes import make_scene
from ray_wsss.models.promptable.encoder import SamEncoder

# Batches of two; the last one is not full, and the sizes differ.
IMAGES = [
    make_scene(seed, *hw).image
    for seed, hw in enumerate([(64, 96), (96, 64), (300, 200), (64, 64), (48, 112), (96, 64), (128, 96)])
]


@pytest.fixture
def gpu(monkeypatch) -> FakeGpuWithStreams:
    fake_driver(monkeypatch)
    return FakeGpuWithStreams(monkeypatch)


@pytest.fixture
def encoder(gpu, tiny_sam) -> SamEncoder:
    made = SamEncoder(deepcopy(tiny_sam), batch_size=2)
    made.sam = gpu.put(made.sam)
    return made


def test_batches_are_copied_beside_the_encoder(gpu, encoder):
    with gpu:
        (embeddings,) = encoder(IMAGES).maps
    assert embeddings.shape == (7, 64, 16, 16)
    streams = {stream for _, stream, _ in gpu.made.values()}
    assert len(streams) == 2
    assert len(gpu.copies) >= 7  # none of them from memory that the host has changed meanwhile


def test_the_encoder_has_to_wait_for_the_copies(gpu, encoder, monkeypatch):
    monkeypatch.setattr(torch.cuda.Stream, "wait_stream", lambda self, other: None)
    with gpu, pytest.raises(Race, match="not have made yet"):
        encoder(IMAGES)


def test_an_earlier_wait_is_not_enough(gpu, encoder, monkeypatch):
    waited: list[object] = []
    wait = torch.cuda.Stream.wait_stream

    def only_once(self, other):
        if not waited:
            wait(self, other)
        waited.append(other)

    monkeypatch.setattr(torch.cuda.Stream, "wait_stream", only_once)
    with gpu, pytest.raises(Race, match="not have made yet"):
        encoder(IMAGES)
    assert len(waited) == 2


def test_the_allocator_has_to_know_of_both_streams(gpu, encoder, monkeypatch):
    monkeypatch.setattr(Tensor, "record_stream", lambda x, stream: None)
    with gpu, pytest.raises(Race, match="give away"):
        encoder(IMAGES)


def test_one_pinned_buffer_for_all_images_would_be_overwritten(gpu, encoder, monkeypatch):
    buffer = torch.zeros(300 * 300 * 3, dtype=torch.uint8).pin_memory()

    def pin_memory(x: Tensor) -> Tensor:
        part: Any = buffer[: x.numel()].view(x.shape).copy_(x)
        part.in_pinned_memory = True
        return part

    monkeypatch.setattr(Tensor, "pin_memory", pin_memory)
    with pytest.raises(SourceChanged), gpu:
        encoder(IMAGES)
