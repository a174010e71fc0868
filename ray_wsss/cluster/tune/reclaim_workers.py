"""Takes back the CPUs and GPUs of trials whose driver has gone.

Ray Train's workers have a placement group of their own, which outlives the driver of a trial that Tune stops.
Ray's own cleaner asks the dashboard for it, and fails without one or where several Rays run on a host
(Ray 2.60, `PlacementGroupCleaner`): the CPUs would never come back, and the sweep would wait for ever.
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
    """What a trial's first worker leaves in its folder."""

    driver: str
    """Name of an actor that ends with the trial's driver."""
    placement_group: str
    """Id of the workers' placement group."""

    def driver_is_gone(self) -> bool:
        """Whether nothing is left that could start workers."""
        try:
            ray.get_actor(self.driver)
        except ValueError:
            return True
        return False

    def free(self) -> None:
        """End the workers and free what they hold; nothing where that has happened already."""
        remove_placement_group(PlacementGroup(ray.PlacementGroupID.from_hex(self.placement_group)))


def note_workers(folder: Path, driver: str) -> None:
    """Leave a note of the placement group that this process, a worker of Ray Train, belongs to."""
    group = get_current_placement_group()
    assert group is not None, "Ray Train's workers have one"
    note = WorkersNote(driver=driver, placement_group=group.id.hex())
    write_json(asdict(note), folder / _NOTE)


class Reclaimer:
    """Frees the workers of trials that were stopped or lost, once their drivers are gone.

    Not before: a driver that still lives would take lost workers for a failure, and start others.
    """

    def __init__(self) -> None:
        self.waiting: list[WorkersNote] = []

    def add(self, folder: Path) -> None:
        """A trial was stopped, or its driver lost."""
        try:
            note = json.loads((folder / _NOTE).read_text(encoding="utf-8"))
        except FileNotFoundError:  # its workers had not begun
            return
        self.waiting.append(WorkersNote(**note))

    def free(self) -> None:
        """Free what can be freed now."""
        for note in [note for note in self.waiting if note.driver_is_gone()]:
            note.free()
            self.waiting.remove(note)

    def free_all(self, patience_s: float = 30) -> None:
        """Free everything, waiting for drivers to end."""
        deadline = time.monotonic() + patience_s
        while self.waiting and time.monotonic() < deadline:
            self.free()
            time.sleep(0.2)
