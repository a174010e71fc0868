"""Verdicts of a person who looked through a report's gallery, from the file that the page saves.

review.csv has a line per image with the columns ``image_id``, ``verdict`` (accept or reject) and, if the page
wrote it, ``time``. Images without a line were not looked at.
"""

import csv
import hashlib
import io
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from ray_wsss.errors import UserError
from ray_wsss.storage import why_unreadable

VERDICTS = ("accept", "reject")


@dataclass(frozen=True, kw_only=True)
class Review:
    """Verdicts on the labels of a data set."""

    path: Path
    accepted: frozenset[str]
    """Ids of the accepted images."""
    rejected: frozenset[str]
    """Ids of the rejected images."""

    def settings(self) -> dict[str, str]:
        """Settings of a result that leaves the rejected images out: a hash of their ids."""
        ids = "\0".join(sorted(self.rejected))
        return {"review.rejected": hashlib.sha256(ids.encode("utf-8", "surrogatepass")).hexdigest()}

    def describe(self, left_out: int, images: int) -> str:
        """Sentence about the images that were left out of ``images``."""
        return f"{left_out:,} of {images:,} images left out: rejected in {self.path.name}"


def read_review(path: Path, image_ids: Collection[str], where: Path) -> Review:
    """Read review.csv.

    Args:
        image_ids: ids of all images that may have a verdict.
        where: what these images are in, for messages.

    Raises:
        UserError: the file can't be read, lacks a column, or has a verdict, an image or a pair of verdicts
            that can't be; the message names the line.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")  # spreadsheets write the mark
    except OSError as error:
        raise UserError(f"--review {path}: {why_unreadable(error, str(path))}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"--review {path} is not UTF-8 ({error.reason} at byte {error.start})") from None
    verdicts: dict[str, str] = {}
    lines = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    known = set(image_ids)
    try:
        missing = [name for name in ("image_id", "verdict") if name not in (lines.fieldnames or ())]
        if missing:
            raise ValueError(f"there is no column '{missing[0]}'; expected image_id,verdict")
        for row in lines:
            _add(verdicts, row["image_id"], row["verdict"], known, where)
    except (ValueError, csv.Error) as error:
        raise UserError(f"--review {path}, line {max(1, lines.reader.line_num)}: {error}") from None
    of = {verdict: frozenset(i for i, v in verdicts.items() if v == verdict) for verdict in VERDICTS}
    return Review(path=path, accepted=of["accept"], rejected=of["reject"])


def _add(
    verdicts: dict[str, str], image_id: str | None, verdict: str | None, known: Collection[str], where: Path
) -> None:
    """Add the verdict of a line. Raises ValueError if it can't be."""
    if verdict not in VERDICTS:
        raise ValueError(f"the verdict is '{verdict or ''}'; expected accept or reject")
    if image_id is None or image_id not in known:
        raise ValueError(f"there is no image '{image_id}' in {where}")
    if verdicts.setdefault(image_id, verdict) != verdict:
        raise ValueError(f"the image '{image_id}' has the verdict {verdicts[image_id]} in a line above")
