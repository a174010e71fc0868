"""One run of a command on an output folder: which chunks lack a part, and when the folder is complete."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ray_wsss.config.error_limit import ErrorLimit
from ray_wsss.data.reader import open_shard
from ray_wsss.data.schema import write_errors
from ray_wsss.errors import TooManyFailedError, UserError
from ray_wsss.runs.manifest import Output
from ray_wsss.runs.parts import Parts
from ray_wsss.runs.read_chunks import Chunk, Slice, plan_chunks
from ray_wsss.runs.run_report import Failures
from ray_wsss.runs.tally import Tally
from ray_wsss.storage import write_json

_FORGOTTEN = "make_again.json"
"""File in the output of a run in which too many images failed: indices of the chunks that the next run makes
again if images in them failed."""


@dataclass(frozen=True, kw_only=True)
class ChunkRun:
    """A run that has claimed its output folder; made by `ChunkRun.start`."""

    output: Output
    chunks: Sequence[Chunk]
    """All chunks of the data set, or of its slice."""
    parts: Parts
    missing: Sequence[Chunk]
    """Chunks that have no part yet; this run makes them."""
    done: Tally
    """Counts summed over the parts that earlier runs wrote."""
    is_finished: bool
    """True if an earlier run finished the folder and every part is still there."""

    @classmethod
    def start(
        cls, output: Output, dataset: Path, *, overwrite: bool | None = None, part: Slice | None = None
    ) -> "ChunkRun":
        """Claim the folder and find the chunks of ``dataset`` that have no part in it.

        In an unfinished folder, files that killed writers left behind are removed.

        Args:
            overwrite: see `runs.manifest.Output.begin`.
            part: the slice of the data set that the folder is for; None: all of it.

        Raises:
            UserError: the folder holds something else, the slice is empty, or the data set is missing or
                damaged.
        """
        state = output.begin(overwrite=overwrite)
        chunks: Sequence[Chunk] = plan_chunks(dataset)
        chunks = chunks if part is None else part.of(chunks)
        parts = Parts(output.out.absolute(), output.fingerprint)
        there = parts.finished(chunks)
        if state != "finished" and (output.out / _FORGOTTEN).exists():
            # Actors of the run that failed may have written parts after it had removed them.
            again = set(json.loads((output.out / _FORGOTTEN).read_text(encoding="utf-8")))
            there = {k: tally for k, tally in there.items() if k not in again or not tally.errors}
            (output.out / _FORGOTTEN).unlink()
        missing = [chunk for chunk in chunks if chunk.index not in there]
        is_finished = state == "finished" and not missing
        if not is_finished:
            output.reopen()  # a finished folder may have lost parts since
            for stray in parts.strays(chunks):
                stray.unlink()
        return cls(
            output=output,
            chunks=chunks,
            parts=parts,
            missing=missing,
            done=Tally.total(there.values()),
            is_finished=is_finished,
        )

    @property
    def images(self) -> int:
        """Number of images in the data set, or in its slice."""
        return sum(chunk.rows for chunk in self.chunks)

    def finish(self, limit: ErrorLimit | None = None) -> None:
        """Write ``errors.parquet`` if images failed, and mark the folder as complete.

        Args:
            limit: how many images may fail; None: the default.

        Raises:
            UserError: a part is missing.
            TooManyFailedError: too many images failed. ``errors.parquet`` lists them. The parts with failed
                images are removed, so that the next run makes them again.
        """
        tallies = self.parts.finished(self.chunks)
        failed: Failures = []
        for chunk in self.chunks:
            tally = tallies.get(chunk.index)
            if tally is None:
                path = self.parts.path(chunk.index)
                raise UserError(f"{path} went missing during the run; run the same command again")
            if tally.errors:
                failed += self._failures(chunk)
        write_errors(failed, self.parts.out)
        total, limit = Tally.total(tallies.values()), limit or ErrorLimit()
        try:
            limit.check(total.images, total.errors, failed[0][1] if failed else "", at_end=True)
        except TooManyFailedError as error:
            self._forget(self.chunks)
            raise TooManyFailedError(f"{error}; {self.output.out / 'errors.parquet'} lists all") from error
        self.output.finish()

    def forget_failed(self) -> None:
        """Remove the parts of this run in which images failed, so that the next run makes them again."""
        self._forget(self.missing)

    def _forget(self, chunks: Sequence[Chunk]) -> None:
        write_json([chunk.index for chunk in chunks], self.output.out / _FORGOTTEN)
        tallies = self.parts.finished(chunks)
        for index in (index for index, tally in tallies.items() if tally.errors):
            self.parts.path(index).unlink(missing_ok=True)

    def _failures(self, chunk: Chunk) -> Failures:
        with open_shard(self.parts.path(chunk.index)) as file:
            rows = file.read(columns=["image_id", "error"]).to_pylist()
        return [(row["image_id"], row["error"]) for row in rows if row["error"]]
