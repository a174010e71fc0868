"""Ray's metrics of a stage: counters that the dashboard and Prometheus show."""

from ray.util.metrics import Counter

from ray_wsss.stages.tally import Tally

_COUNTS = {
    "images": "Images that were done",
    "prompts": "Points that SAM was prompted with",
    "masks": "Masks that SAM made",
    "errors": "Images that failed",
}


class StageMetrics:
    """Counters of one process, tagged with the stage.

    ``ray_wsss_images``, ``_prompts``, ``_masks``, ``_errors``, and ``ray_wsss_phase_seconds`` tagged with
    the phase: rates of a counter give images/s and the share of each phase. (A histogram's sum would be
    estimated from its buckets.)
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
        """Count what a chunk took."""
        for name, counter in self.counts.items():
            if getattr(tally, name):
                counter.inc(getattr(tally, name), {"stage": self.stage})
        for phase, seconds in tally.seconds.items():
            if seconds > 0:
                self.seconds.inc(seconds, {"stage": self.stage, "phase": phase})
