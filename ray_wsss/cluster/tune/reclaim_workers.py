"""Takes back the CPUs and GPUs of trials whose driver has gone.

Ray Train's workers have a placement group of their own. It outlives the controller that made it, which ends
with the driver of a trial (ray-project/ray#54305). So does a group that still waits for room: it takes the
next CPUs that come free, for nobody. Ray's `PlacementGroupCleaner` (ray-project/ray#58515) knows only groups
whose workers have started. In Ray 2.60 it asks the dashboard whether the controller lives, and fails if there
is no dashboard or if several Rays run on the host. The sweep would wait for ever.
"""

import logging
import time
from collections.abc import Iterator

import ray
from ray._private.state import actors
from ray._raylet import GcsClientOptions, GlobalStateAccessor  # pyright: ignore[reportAttributeAccessIssue]
from ray.core.generated.gcs_pb2 import PlacementGroupTableData  # pyright: ignore[reportAttributeAccessIssue]
from ray.util.placement_group import PlacementGroup, remove_placement_group

log = logging.getLogger(__name__)

_CONTROLLER = "TrainController"
"""Class of the actors of Ray Train that make the placement groups."""
_LOOK_EVERY_S = 1.0


class Reclaimer:
    """Frees the workers of trials that were stopped or lost, once their controllers are gone.

    A controller that still lives would take the loss of its workers for a failure, and start new ones.
    """

    def __init__(self) -> None:
        self.looked = 0.0

    def free(self) -> None:
        """Free the workers whose controllers are gone; looks for them once a second at most."""
        if time.monotonic() - self.looked >= _LOOK_EVERY_S:
            self.looked = time.monotonic()
            free_abandoned()

    def free_all(self, patience_s: float = 60) -> None:
        """Free all workers, and wait at most ``patience_s`` seconds for controllers to end.

        A driver has 30 seconds to end by itself before Ray 2.60 kills it.
        """
        deadline = time.monotonic() + patience_s
        while held := free_abandoned():
            if time.monotonic() > deadline:
                log.warning("after %.0f s, %d trainings still hold CPUs or GPUs", patience_s, held)
                break
            time.sleep(0.2)


def free_abandoned() -> int:
    """End the workers of this job's trainings whose controllers are gone, and free their resources.

    Returns:
        Number of trainings that held resources or waited for them, including those that were freed.
    """
    count = 0
    for group, controller_lives in _groups_of_workers():
        count += 1
        if not controller_lives:
            remove_placement_group(group)
    return count


def _groups_of_workers() -> Iterator[tuple[PlacementGroup, bool]]:
    """Placement groups of this job's trainings, each with whether its controller lives.

    Ray's public `placement_group_table` leaves out who made a group, and the State API needs the dashboard.
    """
    context = ray.get_runtime_context()
    options = GcsClientOptions.create(
        context.gcs_address, None, allow_cluster_id_nil=True, fetch_cluster_id_if_nil=False
    )
    state = GlobalStateAccessor(options)
    state.connect()
    for group in map(PlacementGroupTableData.FromString, state.get_placement_group_table()):
        ours = group.creator_job_id.hex() == context.get_job_id()
        if ours and group.state != PlacementGroupTableData.REMOVED:
            creator = actors(group.creator_actor_id.hex())
            if creator.get("ActorClassName") == _CONTROLLER:
                group_id = ray.PlacementGroupID(group.placement_group_id)
                yield PlacementGroup(group_id), creator["State"] != "DEAD"
