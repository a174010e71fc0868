"""The parts of the check: what each measures, what it needs, and how large it is."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

Device = Literal["cpu", "cuda"]
ROOT = Path(__file__).parents[3]
"""The clone, whose tests are run."""
_STAGES = ("pyarrow", "PIL", "pycocotools", "safetensors", "segment_anything", "timm", "jaxtyping")
"""Packages that the networks, and the files they read, need."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """Device, sizes and folder that a part is given."""

    device: Device
    small: bool
    """Sizes that a CPU computes in seconds; their figures mean nothing."""
    work: Path
    """Folder for inputs and results, shared by all parts."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of the check, which runs in a process of its own."""

    name: str
    what: str
    """Subject of the measurement, in words."""
    measure: Callable[[Job], dict[str, Any]]
    needs: Sequence[str] = ()
    """Packages without which it is skipped."""
    only_cuda: bool = False

    def why_skipped(self, device: Device) -> str | None:
        """Reason why this machine can't run the part; None if it can."""
        missing = [name for name in self.needs if importlib.util.find_spec(name) is None]
        if missing:
            return f"not installed: {', '.join(missing)}"
        return "needs a GPU" if self.only_cuda and device == "cpu" else None


def _device(job: Job) -> dict[str, Any]:
    from ray_wsss.benchmark.gpu_check.measure import describe_device

    return describe_device(job.device, small=job.small)


def _tests(job: Job) -> dict[str, Any]:
    """Run the tests that compare the device with the CPU, and count them."""
    from ray_wsss.errors import UserError

    folder, report = ROOT / "tests" / "unit" / "gpu", job.work / "tests.xml"
    if not folder.is_dir():
        raise UserError(f"there is no {folder}; expected a clone of the project, with its tests")
    report.unlink(missing_ok=True)
    environment = os.environ | ({"RAY_WSSS_GPU_TESTS": "cpu"} if job.device == "cpu" else {})
    command = [sys.executable, "-m", "pytest", "-q", "-o", "addopts=", "-m", "gpu", "-p", "no:cacheprovider"]
    command += ["-W", "default", f"--junit-xml={report}", str(folder)]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if not report.exists():
        raise UserError(f"the tests did not run: {(run.stdout + run.stderr)[-2000:]}")
    cases = list(ElementTree.parse(report).getroot().iter("testcase"))
    bad = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = [case for case in cases if case.find("skipped") is not None]
    return {
        "passed": len(cases) - len(bad) - len(skipped),
        "skipped": {_name(case): _message(case, "skipped") for case in skipped},
        "failed": {_name(case): _message(case, "failure", "error") for case in bad},
    }


def _name(case: ElementTree.Element) -> str:
    return f"{case.get('classname', '').rpartition('.')[2]}::{case.get('name')}"


def _message(case: ElementTree.Element, *kinds: str) -> str:
    found = next(element for kind in kinds if (element := case.find(kind)) is not None)
    return (found.get("message") or "").partition("\n")[0][:200]


def _sam(name: Any) -> Callable[[Job], dict[str, Any]]:
    def measure(job: Job) -> dict[str, Any]:
        from ray_wsss.benchmark.gpu_check.measure import time_encoder

        return time_encoder(name, job.device, job.work, small=job.small)

    return measure


def _predictor(name: Any) -> Callable[[Job], dict[str, Any]]:
    def measure(job: Job) -> dict[str, Any]:
        from ray_wsss.benchmark.gpu_check.measure import time_predictor

        return time_predictor(name, job.device, job.work, small=job.small)

    return measure


def _sam2(size: str, *, only_cuda: bool = True) -> Part:
    name = f"sam2.1_{size}"
    needs = (*_STAGES, "transformers")
    what = f"SAM 2.1 {size.replace('_plus', '+')} against transformers, one click an image"
    return Part(name=name, what=what, measure=_predictor(name), needs=needs, only_cuda=only_cuda)


def _label(job: Job) -> dict[str, Any]:
    from ray_wsss.benchmark.gpu_check.measure import time_labelling

    return time_labelling(job.device, job.work, small=job.small)


def _train(job: Job) -> dict[str, Any]:
    from ray_wsss.benchmark.gpu_check.measure import time_training

    return time_training(job.device, job.work, small=job.small)


def _peaks(job: Job) -> dict[str, Any]:
    from ray_wsss.benchmark.gpu_check.measure import time_peaks

    return time_peaks(job.device, small=job.small)


def _memory(job: Job) -> dict[str, Any]:
    from ray_wsss.benchmark.gpu_check.memory import measure_memory

    return measure_memory()


PARTS = (
    Part(name="device", what="the device and its rate of matrix products", measure=_device),
    Part(
        name="tests",
        what="the device against the CPU: pytest -m gpu",
        measure=_tests,
        needs=(*_STAGES, "pytest"),
    ),
    Part(name="sam_vit_h", what="SAM's encoder, ViT-H", measure=_sam("vit_h"), needs=_STAGES, only_cuda=True),
    Part(name="label", what="labelling against a naive loop", measure=_label, needs=(*_STAGES, "skimage")),
    Part(name="peaks", what="peaks against scikit-image", measure=_peaks, needs=("skimage", "jaxtyping")),
    Part(name="train", what="a training step, by kind of CPM", measure=_train, needs=(*_STAGES, "skimage")),
    Part(
        name="memory",
        what="peak memory of the defaults against what was calculated",
        measure=_memory,
        needs=_STAGES,
        only_cuda=True,
    ),
    Part(name="sam_vit_b", what="SAM's encoder, ViT-B", measure=_sam("vit_b"), needs=_STAGES, only_cuda=True),
    Part(name="sam_vit_l", what="SAM's encoder, ViT-L", measure=_sam("vit_l"), needs=_STAGES, only_cuda=True),
    Part(name="sam_tiny", what="SAM's encoder, tiny", measure=_sam("tiny"), needs=_STAGES),
    _sam2("large"),
    _sam2("tiny", only_cuda=False),
    _sam2("small"),
    _sam2("base_plus"),
)
"""Parts in the order in which they run: the most important first, in case the time is short."""
