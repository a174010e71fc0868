"""A GPU without values, to see on a machine without one what a GPU's host would wait for."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only


class HostWaits(Exception):
    """The host would wait for the GPU."""


class SourceChanged(Exception):
    """A copy that was still under way would have read something else."""


REFUSED = (HostWaits, DataDependentOutputException, DynamicOutputShapeException)


class FakeGpu(TorchDispatchMode):
    """A machine with a GPU, on one without: what is on it has a shape and a device, but no values.

    The CPU's own tensors are real. Torch's fake tensors refuse what needs a value (``item``) or has a shape
    that depends on one (``nonzero``). Refused here is what they let pass and yet stops the host: copies to
    the CPU, copies from it that are not both pinned and non-blocking, and indexing with masks.

    Its copies are slow. Each reads its source only when the mode ends, and refuses one that was changed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.fake = FakeTensorMode()
        self.ops = 0
        self.copies: list[tuple[Tensor, Tensor]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        target = torch.device(kwargs.get("device") or "cpu")
        if target.type == "cpu" and not any(isinstance(x, FakeTensor) for x in given):
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        self.ops += 1
        self._check(func, args, kwargs, given)
        args, kwargs = tree_map_only(Tensor, self._as_fake, (args, kwargs))
        return func(*args, **kwargs)

    def __enter__(self) -> "FakeGpu":
        self.fake.__enter__()  # below this mode; without it torch would look for a driver
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.fake.__exit__(*error)
        if error[0] is None and not all(torch.equal(*pair) for pair in self.copies):
            raise SourceChanged("the host changed memory that was still being copied")

    def put(self, value: Any) -> Any:
        """A tensor or module on the GPU; it was brought there before anything is timed."""
        if isinstance(value, nn.Module):
            value = deepcopy(value)
            for module in value.modules():
                for name, buffer in module._buffers.items():
                    module._buffers[name] = self.put(buffer)
                for name, parameter in module._parameters.items():
                    if parameter is not None:
                        module._parameters[name] = nn.Parameter(self.put(parameter), parameter.requires_grad)
            return value
        if not isinstance(value, Tensor):
            return value
        with self.fake:
            return torch.empty(value.shape, dtype=value.dtype, device="cuda")

    def _as_fake(self, x: Tensor) -> Tensor:
        return x if isinstance(x, FakeTensor) else self.fake.from_tensor(x)

    def _check(self, func: Any, args: Any, kwargs: Any, given: list[Tensor]) -> None:
        name = func._schema.name
        if name == "aten::_to_copy":
            target = torch.device(kwargs.get("device") or args[0].device)
            self._check_copy(args[0], target.type, kwargs.get("non_blocking", False))
        elif name == "aten::copy_":
            self._check_copy(args[1], args[0].device.type, len(args) > 2 and args[2])
        elif any(x.ndim and not isinstance(x, FakeTensor) for x in given):
            raise HostWaits(f"{name} of tensors here and there: one would be copied")
        indices = args[1] if name in ("aten::index", "aten::index_put", "aten::index_put_") else ()
        if any(x is not None and x.dtype in (torch.bool, torch.uint8) for x in indices):
            raise HostWaits(f"{name} with a mask counts it")

    def _check_copy(self, source: Tensor, target: str, non_blocking: bool) -> None:
        if source.device.type == target or (source.device.type == "cpu" and not source.ndim):
            return
        if target == "cpu":
            raise HostWaits("copy to the CPU")
        if not (non_blocking and getattr(source, "in_pinned_memory", False)):
            raise HostWaits("blocking copy from the CPU")
        with unset_fake_temporarily():
            self.copies.append((source, source.clone()))


def fake_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let tensors be pinned and autocast be entered without a GPU; skip where torch can't do without one."""
    if not hasattr(torch._C, "_ensureCUDADeviceGuardSet"):
        pytest.skip(f"torch {torch.__version__} needs a GPU's driver to index a GPU's fake tensors")

    def pin_memory(x: Tensor) -> Tensor:
        pinned: Any = x.clone()
        pinned.in_pinned_memory = True
        return pinned

    monkeypatch.setattr(Tensor, "pin_memory", pin_memory)
    monkeypatch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)


class Race(Exception):
    """A stream would read what another one may not have written yet, or memory that may be used anew."""


class Stream:
    """A stream of a `FakeGpuWithStreams`, whose work is done as late as it can be."""

    def __init__(self, *_: Any) -> None:
        self.ops = 0
        self.waited: dict[Stream, int] = {}

    def wait_stream(self, other: "Stream") -> None:
        """Let this stream's next ops wait for all that the other stream has been given so far."""
        self.waited |= {each: max(count, self.waited.get(each, 0)) for each, count in other.waited.items()}
        self.waited[other] = other.ops


class FakeGpuWithStreams(FakeGpu):
    """Refuses what only works while the streams happen to keep pace.

    A stream may use a tensor of another stream if it waited for the op that made it (or changed it last), and
    if `record_stream` told the allocator, which else gives the memory away when the host drops the tensor.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.current = Stream()
        self.made: dict[int, tuple[Any, Stream, int]] = {}  # with the storage, so that no other gets its id
        self.recorded: set[tuple[int, Stream]] = set()
        monkeypatch.setattr(torch.cuda, "Stream", Stream)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda *_: self.current)
        monkeypatch.setattr(torch.cuda, "stream", self._on)
        monkeypatch.setattr(Tensor, "record_stream", lambda x, stream: self._record(x, stream))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = self.ops
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, FakeTensor)]
        for x in given:
            self._check_made(x, func)
        results = super().__torch_dispatch__(func, types, args, kwargs)
        if self.ops > before:
            self.current.ops += 1
            views = set() if func._schema.is_mutable else {_storage(x) for x in given}
            for x in tree_leaves(results):
                if isinstance(x, FakeTensor) and _storage(x) not in views:
                    self.made[_storage(x)] = (x.untyped_storage(), self.current, self.current.ops)
        return results

    def _check_made(self, x: Tensor, func: Any) -> None:
        _, stream, op = self.made.get(_storage(x), (None, self.current, 0))
        if stream is self.current:
            return
        if self.current.waited.get(stream, 0) < op:
            raise Race(f"{func} reads a tensor that another stream may not have made yet")
        if (_storage(x), self.current) not in self.recorded:
            raise Race(f"{func} reads memory of another stream, which the allocator may give away")

    @contextmanager
    def _on(self, stream: Stream) -> Iterator[None]:
        before, self.current = self.current, stream
        yield
        self.current = before

    def _record(self, x: Tensor, stream: Stream) -> None:
        self.recorded.add((_storage(x), stream))


def _storage(x: Tensor) -> int:
    return x.untyped_storage()._cdata
