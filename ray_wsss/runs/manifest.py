"""Manifests of output folders: the command that made a folder resumes it, and every other one is refused."""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict, cast

from ray_wsss.data.reader import open_shard, shard_paths
from ray_wsss.errors import UserError
from ray_wsss.storage import find_files, read_side_by_side, remove_tree, write_json
from ray_wsss.version import __version__

State = Literal["new", "unfinished", "finished"]
FORMAT = 1
"""Number of the layout of output folders; a layout that this version can't read gets a higher number."""

_BEFORE_RESULTS = frozenset(("manifest.json", "runs.json", "progress.log", "masks.json", "classes.json"))
"""Files that a run writes before it has any result."""
KNOWN_BY_CONTENT = (
    "classifier.backbone_checkpoint",
    "classifier.class_words",
    "segmenter.backbone_checkpoint",
)
"""Settings that are paths of files whose SHA-256 is noted too, as KEY.sha256; only the content decides.
Version 0.1 of ray_wsss noted the path alone, so in its outputs the path decides."""
NOTES = ("sam.licence",)
"""Facts that decide nothing, noted for readers."""

log = logging.getLogger(__name__)


class Manifest(TypedDict):
    """Content of ``manifest.json``."""

    stage: str
    """The command that made the folder."""
    state: State
    format: NotRequired[int]
    """`FORMAT` of the writer; version 0.1 of ray_wsss wrote none, which means 1."""
    ray_wsss: str
    """Version of ray_wsss that wrote the file."""
    depends_on: dict[str, Any]
    """See `Output.depends_on`."""


class NewerFormatError(UserError):
    """A later version of ray_wsss wrote the folder, in a layout that this version can't read."""


@dataclass(frozen=True)
class Output:
    """The output folder of one run of a stage; ``OUT/manifest.json`` records what the output depends on."""

    out: Path
    stage: str
    """The command that makes the folder."""
    depends_on: Mapping[str, Any]
    """Everything that decides the result: settings by dotted key, inputs by name and hash."""

    @property
    def fingerprint(self) -> str:
        """Hex SHA-256 of the stage and of everything it depends on; it differs for other inputs."""
        decides = {k: v for k, v in self.depends_on.items() if not _decides_nothing(k, self.depends_on)}
        content = json.dumps([self.stage, _as_compared(decides)], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()

    def begin(self, *, overwrite: bool | None = None) -> State:
        """Claim the folder.

        Args:
            overwrite: True replaces an output of ray_wsss in the folder. None stands for a command without
                --overwrite, so that no message offers it.

        A folder that other settings claimed counts as new while it has no results: a run that was refused,
        for example on a cluster without room for it, leaves such a folder.

        Returns:
            "new", "unfinished" (an earlier run with the same settings was interrupted) or "finished".

        Raises:
            UserError: the folder is a file, or holds something else or a run with other settings.
        """
        if self.out.is_file():
            raise UserError(f"--out {self.out} is a file; expected a folder")
        found = read_manifest(self.out)
        if found is None and self.out.exists() and any(self.out.iterdir()):
            raise UserError(
                f"--out {self.out} exists and is not an output of ray-wsss; expected a new or empty folder"
            )
        if found is not None and overwrite:
            remove_tree(self.out)
            found = None
        if found is None or self._is_free(found):
            self._write("unfinished")
            return "new"
        if found["stage"] != self.stage:
            raise UserError(
                f"--out {self.out} holds the output of {found['stage']}; expected a folder for {self.stage}"
            )
        self._refuse_other_settings(found["depends_on"], overwrite)
        return found["state"]

    def reopen(self) -> None:
        """Mark the folder as unfinished, for example after it has lost files."""
        self._write("unfinished")

    def finish(self) -> None:
        """Mark the folder as finished.

        Raises:
            UserError: another run has claimed the folder since this one began.
        """
        found = read_manifest(self.out)
        if found is not None and not self._is_ours(found):
            raise UserError(
                f"--out {self.out} was claimed by another {found['stage']} run in the meantime; "
                "run this command again in a folder of its own"
            )
        self._write("finished")

    def log_finished(self, overwrite: bool | None, more: str = "") -> None:
        """Log that the folder is already finished.

        Args:
            overwrite: see `begin`; the line mentions --overwrite unless this is None.
            more: text to add at the end of the line.
        """
        again = "" if overwrite is None else "; --overwrite makes it again"
        log.info("%s is already finished%s%s", self.out, again, more)

    def _is_ours(self, found: Manifest) -> bool:
        """Whether a manifest is of the same stage with the same settings."""
        ours = json.loads(json.dumps(self.depends_on))
        return found["stage"] == self.stage and not _differing(ours, found["depends_on"])

    def _is_free(self, found: Manifest) -> bool:
        """Whether other settings claimed the folder and have left no result in it."""
        return found["state"] == "unfinished" and not self._is_ours(found) and not _has_results(self.out)

    def _refuse_other_settings(self, theirs: Mapping[str, Any], overwrite: bool | None) -> None:
        ours = json.loads(json.dumps(self.depends_on))
        changed = _differing(ours, theirs)
        if changed:
            key = changed[0]
            before, now = (settings.get(key, "not set") for settings in (theirs, ours))
            more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
            or_overwrite = "" if overwrite is None else ", or --overwrite to replace it"
            raise UserError(
                f"--out {self.out} holds a run with another {key} "
                f"({before}, now {now}){more}; "
                f"choose another folder{or_overwrite}"
            )

    def _write(self, state: State) -> None:
        content: Manifest = {
            "stage": self.stage,
            "state": state,
            "format": FORMAT,
            "ray_wsss": __version__,
            "depends_on": dict(self.depends_on),
        }
        write_json(content, self.out / "manifest.json")


def _differing(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """Sorted names of the settings that differ; a setting that is missing equals None.

    A file counts by its content if both settings note it, else by its path.
    """
    only_ours = {
        f"{key}.sha256"
        for key in KNOWN_BY_CONTENT
        if f"{key}.sha256" not in theirs and ours.get(key) == theirs.get(key)
    }
    keys = [key for key in sorted({*ours, *theirs} - only_ours) if not _decides_nothing(key, ours, theirs)]
    return [key for key in keys if ours.get(key) != theirs.get(key)]


def _decides_nothing(key: str, *settings: Mapping[str, Any]) -> bool:
    """True for a mere note, and for the path of a file whose content all of these settings note."""
    return key in NOTES or (key in KNOWN_BY_CONTENT and all(f"{key}.sha256" in noted for noted in settings))


def _has_results(out: Path) -> bool:
    """Whether a folder holds a file with content, beside those that a run writes before its first result."""
    return any(file.size and name not in _BEFORE_RESULTS for name, file in find_files(out).items())


def _as_compared(value: Any) -> Any:
    """``value`` with integers as floats, since 1 and 1.0 are equal settings."""
    if isinstance(value, dict):
        return {key: _as_compared(entry) for key, entry in cast(dict[str, Any], value).items()}
    if isinstance(value, list | tuple):
        return [_as_compared(entry) for entry in cast(Sequence[Any], value)]
    return float(value) if type(value) is int else value


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest in ``folder``; None if there is no manifest.json, or another program wrote it.

    Raises:
        UserError: manifest.json is not JSON, or its format is not a number.
        NewerFormatError: a later version of ray_wsss wrote the folder in a newer layout.
    """
    path = folder / "manifest.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        return None
    except ValueError as error:
        raise UserError(f"{path} is not readable JSON: {error}") from None
    if not (isinstance(found, dict) and {"stage", "state", "ray_wsss", "depends_on"} <= found.keys()):
        return None
    manifest = cast(Manifest, found)
    number: object = manifest.get("format", 1)
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise UserError(f"format in {path} is {number!r}; expected a number")
    if number > FORMAT:
        raise NewerFormatError(
            f"{folder} was written by ray-wsss {manifest['ray_wsss']} in format {number}; "
            f"ray-wsss {__version__} reads formats up to {FORMAT}: update ray-wsss"
        )
    return manifest


def require_finished(folder: Path, stage: str) -> dict[str, Any]:
    """Everything that the finished output of ``stage`` in ``folder`` depends on.

    Raises:
        UserError: ``folder`` holds something else, or is unfinished.
    """
    found = read_manifest(folder)
    if found is None:
        raise UserError(f"{folder} is not an output of {stage} (it has no manifest.json of ray-wsss)")
    if found["stage"] != stage:
        raise UserError(f"{folder} holds the output of {found['stage']}; expected that of {stage}")
    if found["state"] != "finished":
        raise UserError(f"{folder} is unfinished: run the {stage} command again, which resumes it")
    return found["depends_on"]


def dataset_hash(dataset: Path) -> str:
    """SHA-256 over a data set's metadata and the name, size and footer of every shard.

    A footer holds the sizes of all columns of all row groups, so the hash changes with the images although
    none of them is read.

    Raises:
        UserError: ``dataset`` is not a data set, or can't be read.
    """
    digest = hashlib.sha256(file_hash(dataset / "metadata.json").encode())
    for entry in read_side_by_side(_shard_entry, shard_paths(dataset)):
        digest.update(entry)
    return digest.hexdigest()


def _shard_entry(path: Path) -> bytes:
    with open_shard(path) as file:
        footer = file.metadata.serialized_size
    with path.open("rb") as raw:
        size = raw.seek(0, 2)
        raw.seek(max(0, size - footer - 8))
        return f"{path.name}\0{size}\0".encode() + raw.read()


def file_hash(path: Path) -> str:
    """Hex SHA-256 of a file, for `Output.depends_on`. Raises UserError if the file can't be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror or error}") from None
