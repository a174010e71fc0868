"""Tests of a GPU against the CPU. Without a GPU they are skipped; `DEVICE_VARIABLE` runs them on the CPU."""

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

DEVICE_VARIABLE = "RAY_WSSS_GPU_TESTS"
"""Set to ``cpu``, it runs these tests on the CPU, where they show only that they can run."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark all tests of this folder."""
    for item in items:
        if "tests/unit/gpu/" in item.path.as_posix():
            item.add_marker("gpu")


@pytest.fixture(scope="session")
def device() -> torch.device:
    if os.environ.get(DEVICE_VARIABLE) == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device")
    return torch.device("cuda")


@pytest.fixture
def never_waits(device: torch.device) -> Any:
    """A context in which torch raises an error when the host waits for the GPU."""

    class NeverWaits:
        def __enter__(self) -> None:
            if device.type == "cuda":
                torch.cuda.synchronize()
                torch.cuda.set_sync_debug_mode("error")

        def __exit__(self, *_: Any) -> None:
            if device.type == "cuda":
                torch.cuda.set_sync_debug_mode("default")

    return NeverWaits()


@pytest.fixture
def on_both(device: torch.device) -> Callable[..., tuple[Any, Any]]:
    """Calls a function with the same arguments on the CPU and on the device; both results, on the CPU."""

    def call(function: Callable[..., Any], *args: Any, **options: Any) -> tuple[Any, Any]:
        there = function(*put(args, device), **put(options, device))
        return function(*args, **options), put(there, torch.device("cpu"))

    return call


def put(value: Any, device: torch.device) -> Any:
    """A tensor, or the tensors in a list, tuple or dictionary, on a device; other values as they are."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {name: put(item, device) for name, item in value.items()}
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        return type(value)(put(item, device) for item in value)
    return value
