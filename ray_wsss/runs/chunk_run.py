"""One command's work on an output folder, chunk by chunk: what is missing, and what makes it complete."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ray_wsss.data.reader import open_shard
from ray_wsss.data.schema import write_errors
from ray_wsss.errors import UserError
from ray_wsss.runs.chunks import Chunk, plan_chunks
from ray_wsss.runs.manifest import Output
from ray_wsss.runs.parts import Parts
from ray_wsss.runs.run_report import Failures
from ray_wsss.runs.tally import Tally


@dataclass(frozen=True, kw_only=True)
class ChunkRun:
    """A run that has claimed its folder; `start` makes one."""

    output: Output
    chunks: Sequence[Chunk]
    """All chunks of the data set."""
    parts: Parts
    missing: Sequence[Chunk]
    """Chunks whose part this command has to make."""
    done: Tally
    """Counts of the parts that are there already."""
    is_finished: bool
    """An earlier command has finished the folder, and all of its parts are still there."""

    @classmethod
    def start(cls, output: Output, dataset: Path, *, overwrite: bool | None = None) -> "ChunkRun":
        """Claim the folder and see which chunks of ``dataset`` have no part in it.

        What killed writers left behind is removed. ``overwrite`` as for `Output.begin`.

        Raises:
            UserError: another run's output, or a damaged data set.
        """
        state = output.begin(overwrite=overwrite)
        chunks = plan_chunks(dataset)
        parts = Parts(output.out.absolute(), output.fingerprint)
        there = parts.finished(chunks)
        missing = [chunk for chunk in chunks if chunk.index not in there]
        is_finished = state == "finished" and not missing
        if not is_finished:
            output.reopen()  # it may have lost parts after it was finished
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
        """Images of the data set."""
        return sum(chunk.rows for chunk in self.chunks)

    def finish(self) -> None:
        """List the images that failed in ``errors.parquet`` and mark the folder as complete.

        Raises:
            UserError: a part is missing, or every image failed.
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
        if not Tally.total(tallies.values()).images:
            shards = self.output.out / "shards"
            raise UserError(f"all {len(failed)} images failed; the column 'error' of {shards} says why")
        write_errors(failed, self.parts.out)
        self.output.finish()

    def _failures(self, chunk: Chunk) -> Failures:
        with open_shard(self.parts.path(chunk.index)) as file:
            rows = file.read(columns=["image_id", "error"]).to_pylist()
        return [(row["image_id"], row["error"]) for row in rows if row["error"]]
