"""Runs the parts of the check, each in a process of its own, and keeps what each found."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray_wsss.benchmark.gpu_check.parts import PARTS, ROOT, Device, Job, Part
from ray_wsss.errors import UserError
from ray_wsss.version import __version__

LEAST_SECONDS = 20
"""With less time left, no further part is begun."""


@dataclass(frozen=True, kw_only=True)
class GpuCheck:
    """Runs parts until the time is used up; parts that an earlier run has finished are not run again."""

    device: Device
    minutes: float
    work: Path
    """Folder for inputs and for what each part found."""
    parts: Sequence[str] = ()
    """Names of the parts to run; empty: all."""
    again: bool = False
    """Run parts again that are finished."""
    small: bool = False
    """Sizes that a CPU computes in seconds."""

    def run(self, tell: Callable[[str], object] = print) -> dict[str, dict[str, Any]]:
        """Run the parts.

        Args:
            tell: gets a line about each part.

        Returns:
            By part: ``status`` (done, skipped, failed, not run), with ``figures`` or the ``reason``, and
            ``seconds``.

        Raises:
            UserError: a part has an unknown name.
        """
        known = {part.name: part for part in PARTS}
        for name in self.parts:
            if name not in known:
                raise UserError(f"--part is '{name}'; expected one of: {', '.join(known)}")
        self.work.mkdir(parents=True, exist_ok=True)
        end = time.monotonic() + 60 * self.minutes
        results = {}
        for part in PARTS:
            if self.parts and part.name not in self.parts:
                continue
            result = self._result(part, end - time.monotonic())
            results[part.name] = result
            tell(f"{part.name}: {result['status']}{_why(result)}")
        return results

    def _result(self, part: Part, seconds_left: float) -> dict[str, Any]:
        reason = part.why_skipped(self.device)
        if reason is not None:
            return {"status": "skipped", "reason": reason}
        kept = self.work / f"part_{part.name}.json"
        finished = None if self.again else _read(kept)
        if finished is not None and finished["of"] == self._of():
            return finished["result"]
        if seconds_left < LEAST_SECONDS:
            return {"status": "not run", "reason": "the time was used up; the same command goes on here"}
        result = self._run(part, seconds_left)
        if result["status"] == "done":
            kept.write_text(json.dumps({"of": self._of(), "result": result}, default=float), encoding="utf-8")
        return result

    def _of(self) -> dict[str, Any]:
        """Version, device and sizes that a finished part's figures hold for."""
        return {"version": __version__, "device": self.device, "small": self.small}

    def _run(self, part: Part, seconds: float) -> dict[str, Any]:
        """Run a part in a process of its own: a GPU's errors end a process, and memory is counted anew."""
        out = self.work / f"figures_{part.name}.json"
        out.unlink(missing_ok=True)
        job = [self.device, str(int(self.small)), str(self.work), str(out)]
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        environment = os.environ | {"PYTHONPATH": path}
        command = [sys.executable, "-W", "ignore", "-m", __name__, part.name, *job]
        began = time.monotonic()
        try:
            done = subprocess.run(
                command,
                env=environment,
                capture_output=True,
                text=True,
                timeout=seconds,
            )
        except subprocess.TimeoutExpired:
            return {"status": "not run", "reason": f"took longer than the {seconds:.0f} s that were left"}
        elapsed = time.monotonic() - began
        figures = _read(out)
        if figures is None:
            last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            return {"status": "failed", "reason": last, "seconds": elapsed, "log": done.stderr[-4000:]}
        return {"status": "done", "seconds": elapsed, "figures": figures}


def _why(result: dict[str, Any]) -> str:
    took = f", {result['seconds']:.0f} s" if "seconds" in result else ""
    return took + (f" ({result['reason']})" if "reason" in result else "")


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _measure(name: str, device: Any, small: str, work: str, out: str) -> None:
    """Measure one part and write its figures."""
    part = next(part for part in PARTS if part.name == name)
    figures = part.measure(Job(device=device, small=bool(int(small)), work=Path(work)))
    Path(out).write_text(json.dumps(figures, default=float), encoding="utf-8")


if __name__ == "__main__":
    _measure(*sys.argv[1:])
