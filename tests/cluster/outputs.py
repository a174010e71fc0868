"""Output folders of stages, for comparison."""

import hashlib
from pathlib import Path


def hashes(out: Path) -> dict[str, str]:
    """SHA-256 of every file of a stage's parts, by name."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (out / "shards").iterdir()}
