"""Takes back the CPUs and GPUs of trials whose driver has gone.

Ray Train's workers have a placement group of their own, which outlives the driver of a trial that Tune stops
(ray-project/ray#54305). In Ray 2.60 `PlacementGroupCleaner` (ray-project/ray#58515) asks the dashboard
whether the run's controller lives, and fails if there is no dashboard or if several Rays run on the host: the
CPUs would never come back, and the sweep would wait for ever.
"""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import ray
from ray.util.placement_group import PlacementGroup, get_current_placement_group, remove_placement_group

from ray_wsss.storage import write_json

_NOTE = "workers.json"


@dataclass(frozen=True, kw_only=True)
class WorkersNote:
    """A note that a trial's first worker leaves in the trial's folder."""

    driver: str
    """Name of an actor that ends with the trial's driver."""
    placement_group: str
    """Id of the workers' placement group."""

    def driver_is_gone(self) -> bool:
        """True once the trial's driver has ended, so that nothing can start new workers."""
        try:
            ray.get_actor(self.driver)
        except ValueError:
            return True
        return False

    def free(self) -> None:
        """End the workers and free their resources; does nothing if that has happened already."""
        remove_placement_group(PlacementGroup(ray.PlacementGroupID.from_hex(self.placement_group)))


def note_workers(folder: Path, driver: str) -> None:
    """Write down the placement group of this process, a worker of Ray Train."""
    group = get_current_placement_group()
    assert group is not None, "Ray Train's workers have a placement group"
    note = WorkersNote(driver=driver, placement_group=group.id.hex())
    write_json(asdict(note), folder / _NOTE)


class Reclaimer:
    """Frees the workers of trials that were stopped or lost, once their drivers are gone.

    A driver that still lives would take the loss of its workers for a failure, and start new ones.
    """

    def __init__(self) -> None:
        self.waiting: list[WorkersNote] = []

    def add(self, folder: Path) -> None:
        """Remember the workers of a trial that was stopped, or whose driver was lost."""
        try:
            note = json.loads((folder / _NOTE).read_text(encoding="utf-8"))
        except FileNotFoundError:  # the trial's workers had not started
            return
        self.waiting.append(WorkersNote(**note))

    def free(self) -> None:
        """Free the workers whose drivers are gone."""
        for note in [note for note in self.waiting if note.driver_is_gone()]:
            note.free()
            self.waiting.remove(note)

    def free_all(self, patience_s: float = 30) -> None:
        """Free all workers, and wait at most ``patience_s`` seconds for drivers to end."""
        deadline = time.monotonic() + patience_s
        while self.waiting and time.monotonic() < deadline:
            self.free()
            time.sleep(0.2)
