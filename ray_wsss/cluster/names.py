"""Names of runs in Ray's dashboard."""

import re
from pathlib import Path


def title_of(out: Path) -> str:
    """Name of the run whose output folder is ``out``: its last two parts, such as ``photos-labels``."""
    parts = [part for part in out.absolute().parts[-2:] if part.strip("/")]
    return re.sub(r"[^\w.-]+", "_", "-".join(parts))


def training_name(out: Path) -> str:
    """Name of a training for Ray Train, which is also its folder in ``out``.

    A folder with checkpoints keeps its name, also where version 0.1 wrote it or somebody moved ``out``.
    """
    begun = [path.parent.name for path in out.glob("*/checkpoint_manager_snapshot.json")]
    return begun[0] if begun else title_of(out)
