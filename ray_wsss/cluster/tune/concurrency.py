"""How many trials a cluster has room for, so that none ever waits for what another one holds."""

from collections.abc import Mapping, Sequence

from ray_wsss.cluster.capacity import describe_nodes, live_nodes, room_on
from ray_wsss.config.resources import Workers, counted
from ray_wsss.errors import UserError


def trials_at_once(workers: Workers, most: int | None = None) -> tuple[int, str]:
    """How many trials the cluster that is connected runs at a time, and how that comes about.

    Raises:
        UserError: as `plan_trials`.
    """
    return plan_trials(live_nodes(), workers, most)


def plan_trials(
    nodes: Sequence[Mapping[str, float]], workers: Workers, most: int | None = None
) -> tuple[int, str]:
    """How many trials ``nodes`` (resources by name) run at a time, and a sentence with the arithmetic.

    A trial's workers may lie on several nodes, a worker may not. All of them start together or not at all,
    all are equally large, and the trial's own process takes no CPU and no GPU: so many trials never wait for
    each other.

    Raises:
        UserError: not even one fits; Ray would wait for ever.
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
