"""What the dashboard asks for comes out of Ray under these names."""

import re
import time
from typing import Any, cast
from urllib.request import urlopen

import pytest
import ray

from ray_wsss.cluster.metrics import StageMetrics, TrainingMetrics
from ray_wsss.runs.tally import Tally

_STAGE = "of the test"
_PATIENCE_S = 60
"""Ray's agent shows a process's figures every few seconds."""


@ray.remote(num_cpus=1)
class _Worker:
    def work(self) -> None:
        self.stage = StageMetrics(_STAGE)
        tally = Tally(images=3, prompts=5, masks=4, errors=1, seconds={"encode": 1.5, "wait": 0.25})
        self.stage.add(tally)
        self.stage.add(tally)
        self.training = TrainingMetrics(_STAGE)
        self.training.set({"loss_cls": 0.5, "iteration": 7.0})


def _scrape(port: int) -> dict[tuple[str, str | None], float]:
    """Our worker's values by name and phase."""
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as reply:
        lines = [line for line in reply.read().decode().splitlines() if f'="{_STAGE}"' in line]
    values = {}
    for line in lines:
        phase = re.search(r'\bphase="([^"]*)"', line)
        values[line.split("{")[0], phase[1] if phase else None] = float(line.rsplit(" ", 1)[1])
    return values


@pytest.mark.usefixtures("ray_cluster")
def test_figures_reach_prometheus():
    worker = cast(Any, _Worker).remote()
    ray.get(worker.work.remote())
    expected = {
        ("ray_wsss_images_total", None): 6,
        ("ray_wsss_prompts_total", None): 10,
        ("ray_wsss_masks_total", None): 8,
        ("ray_wsss_errors_total", None): 2,
        ("ray_wsss_phase_seconds_total", "encode"): 3.0,
        ("ray_wsss_phase_seconds_total", "wait"): 0.5,
        ("ray_wsss_train_loss_cls", None): 0.5,
        ("ray_wsss_train_iteration", None): 7,
    }
    (node,) = [node for node in ray.nodes() if node["Alive"]]
    deadline, found = time.monotonic() + _PATIENCE_S, {}
    while time.monotonic() < deadline and found != expected:
        time.sleep(1)
        found = _scrape(node["MetricsExportPort"])
    assert found == expected
