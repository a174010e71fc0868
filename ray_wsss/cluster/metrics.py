"""Metrics of a stage in Ray, which the dashboard and Prometheus show."""

from collections.abc import Mapping

from ray.util.metrics import Counter, Gauge

from ray_wsss.runs.tally import Tally

_COUNTS = {
    "images": "Images that were done",
    "prompts": "Points and boxes that SAM was prompted with",
    "masks": "Masks that SAM made",
    "errors": "Images that failed",
}


class StageMetrics:
    """Counters of one process, tagged with the stage.

    The counters are ``ray_wsss_images``, ``_prompts``, ``_masks``, ``_errors``, and
    ``ray_wsss_phase_seconds``, which has the phase as a second tag. Their rates give images/s and the share
    of each phase. Seconds are not a histogram, since Ray 2.60 only estimates a histogram's sum from its
    buckets.
    """

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self.counts = {
            name: Counter(f"wsss_{name}", description=what, tag_keys=("stage",))
            for name, what in _COUNTS.items()
        }
        self.seconds = Counter(
            "wsss_phase_seconds", description="Seconds by phase", tag_keys=("stage", "phase")
        )

    def add(self, tally: Tally) -> None:
        """Add the counts and seconds of a chunk."""
        for name, counter in self.counts.items():
            if getattr(tally, name):
                counter.inc(getattr(tally, name), {"stage": self.stage})
        for phase, seconds in tally.seconds.items():
            if seconds > 0:
                self.seconds.inc(seconds, {"stage": self.stage, "phase": phase})


class TrainingMetrics:
    """Gauges of a training run, tagged with its folder's name, such as ``ray_wsss_train_iteration``."""

    def __init__(self, run: str) -> None:
        self.run = run
        self.gauges: dict[str, Gauge] = {}

    def set(self, metrics: Mapping[str, float]) -> None:
        """Set the gauges to the figures of a report."""
        for name, value in metrics.items():
            if name not in self.gauges:
                what = f"{name} of a training run, as last reported"
                self.gauges[name] = Gauge(f"wsss_train_{name}", description=what, tag_keys=("run",))
            self.gauges[name].set(value, {"run": self.run})
