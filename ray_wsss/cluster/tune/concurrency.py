"""The number of trials that a cluster has room for, so that no trial waits for resources of another."""

from collections.abc import Mapping, Sequence

from ray_wsss.cluster.capacity import describe_nodes, live_nodes, room_on
from ray_wsss.config.resources import Workers
from ray_wsss.console import counted
from ray_wsss.errors import UserError


def trials_at_once(workers: Workers, most: int | None = None) -> tuple[int, str]:
    """The number of trials that the connected cluster runs at a time, and the arithmetic in words.

    Raises:
        UserError: as `plan_trials`.
    """
    return plan_trials(live_nodes(workers.share.labels), workers, most)


def plan_trials(
    nodes: Sequence[Mapping[str, float]], workers: Workers, most: int | None = None
) -> tuple[int, str]:
    """The number of trials that ``nodes`` (resources by name) run at a time, and the arithmetic in words.

    A trial's workers may lie on several nodes, but one worker may not. The workers of a trial start together
    or not at all, all are equally large, and the trial's own process takes no CPU and no GPU. This number of
    trials therefore never wait for each other.

    Args:
        most: upper limit of the number.

    Raises:
        UserError: not even one trial fits; Ray would wait for ever.
    """
    count = workers.workers
    room = sum(room_on(node, workers.share) for node in nodes)
    arithmetic = (
        f"a trial takes {counted(count, 'worker')} of {workers.share}; the cluster has "
        f"{describe_nodes(nodes)}, room for {counted(room, 'such worker')}"
    )
    fit = room // count
    if not fit:
        raise UserError(f"{arithmetic}; expected room for {count}: ask for fewer or smaller workers")
    at_once = fit if most is None else min(fit, most)
    held = f" (no more, by --max-concurrent; {fit} would fit)" if at_once < fit else ""
    return at_once, f"{arithmetic}: {counted(at_once, 'trial')} at a time{held}"
