"""What a run has to do, and what makes it complete: the decision that every stage and the benchmark share."""

import logging
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_wsss.config.error_limit import ErrorLimit
from ray_wsss.errors import TooManyFailedError, UserError
from ray_wsss.runs.chunk_run import ChunkRun
from ray_wsss.runs.manifest import Output
from ray_wsss.runs.read_chunks import Chunk
from ray_wsss.runs.tally import Tally


@pytest.fixture
def output(tmp_path) -> Output:
    return Output(tmp_path / "out", "label", {"label.tau": 0.5})


def _write(run: ChunkRun, chunk: Chunk, failed: int = 0) -> None:
    """A part of which the first ``failed`` images failed."""
    errors = ["too dark" if k < failed else None for k in range(chunk.rows)]
    ids = [f"image {chunk.first_row + k} of chunk {chunk.index}" for k in range(chunk.rows)]
    table = pa.table({"image_id": ids, "error": pa.array(errors, pa.string())})
    run.parts.write(chunk, table, Tally(images=chunk.rows - failed, errors=failed))


def _complete(output: Output, dataset: Path) -> ChunkRun:
    run = ChunkRun.start(output, dataset)
    for chunk in run.missing:
        _write(run, chunk)
    run.finish()
    return run


def test_a_new_run_lacks_every_chunk(output, scene_dataset):
    run = ChunkRun.start(output, scene_dataset)
    assert [chunk.rows for chunk in run.missing] == [5, 5, 4]
    assert list(run.missing) == list(run.chunks)
    assert run.images == 14
    assert run.done == Tally()
    assert not run.is_finished


def test_an_interrupted_run_lacks_the_rest(output, scene_dataset):
    first = ChunkRun.start(output, scene_dataset)
    _write(first, first.missing[1], failed=2)
    left_over = first.parts.path(0).with_name(".killed.tmp")
    left_over.write_bytes(b"half a part")
    run = ChunkRun.start(output, scene_dataset)
    assert [chunk.index for chunk in run.missing] == [0, 2]
    assert run.done == Tally(images=3, errors=2)
    assert not left_over.exists()


def test_finishing_lists_what_failed(output, scene_dataset):
    run = ChunkRun.start(output, scene_dataset)
    for chunk in run.missing:
        _write(run, chunk, failed=chunk.index)
    run.finish()
    errors = pq.read_table(output.out / "errors.parquet").to_pylist()
    assert [error["image_id"] for error in errors] == [
        "image 0 of chunk 1",
        "image 0 of chunk 2",
        "image 1 of chunk 2",
    ]
    assert {error["reason"] for error in errors} == {"too dark"}
    again = ChunkRun.start(output, scene_dataset)
    assert again.is_finished
    assert not again.missing
    assert again.done == Tally(images=11, errors=3)


def test_a_finished_run_that_lost_a_part_is_unfinished(output, scene_dataset):
    run = _complete(output, scene_dataset)
    run.parts.path(1).unlink()
    again = ChunkRun.start(output, scene_dataset)
    assert [chunk.index for chunk in again.missing] == [1]
    assert not again.is_finished
    assert output.begin() == "unfinished"


def test_a_part_that_goes_missing_is_named(output, scene_dataset):
    run = ChunkRun.start(output, scene_dataset)
    for chunk in run.missing[:2]:
        _write(run, chunk)
    with pytest.raises(UserError, match=r"part-000002\.parquet went missing during the run"):
        run.finish()
    assert output.begin() == "unfinished"


def test_a_run_in_which_all_failed_does_not_finish(output, scene_dataset):
    run = ChunkRun.start(output, scene_dataset)
    for chunk in run.missing:
        _write(run, chunk, failed=chunk.rows)
    with pytest.raises(UserError, match="all 14 images failed"):
        run.finish()
    assert output.begin() == "unfinished"


def test_too_many_failed_images_are_listed_and_done_again(output, scene_dataset):
    run = ChunkRun.start(output, scene_dataset)
    for chunk in run.missing:
        _write(run, chunk, failed=0 if chunk.index == 1 else chunk.rows)
    with pytest.raises(
        TooManyFailedError, match=r"9 of 14 images failed.*at most 0\.5.*the first one: too dark"
    ):
        run.finish()
    assert pq.read_table(output.out / "errors.parquet").num_rows == 9
    again = ChunkRun.start(output, scene_dataset)
    assert [chunk.index for chunk in again.missing] == [0, 2]
    for chunk in again.missing:
        _write(again, chunk, failed=chunk.rows)
    again.finish(ErrorLimit(max_error_share=1))
    assert output.begin() == "finished"


def test_a_stopped_run_forgets_only_its_own_failures(output, scene_dataset):
    first = ChunkRun.start(output, scene_dataset)
    _write(first, first.missing[0], failed=1)
    run = ChunkRun.start(output, scene_dataset)
    for chunk in run.missing:
        _write(run, chunk, failed=chunk.index - 1)
    run.forget_failed()
    assert [chunk.index for chunk in ChunkRun.start(output, scene_dataset).missing] == [2]


def test_a_part_that_a_stopped_run_writes_late_is_made_again(output, scene_dataset):
    run = ChunkRun.start(output, scene_dataset)
    _write(run, run.missing[0], failed=5)
    run.forget_failed()
    _write(run, run.missing[1], failed=5)  # by an actor that was still at work
    again = ChunkRun.start(output, scene_dataset)
    assert [chunk.index for chunk in again.missing] == [0, 1, 2]
    _write(again, again.missing[1], failed=1)
    assert [chunk.index for chunk in ChunkRun.start(output, scene_dataset).missing] == [0, 2]


def test_overwriting_begins_anew(output, scene_dataset):
    _complete(output, scene_dataset)
    assert len(ChunkRun.start(output, scene_dataset, overwrite=True).missing) == 3


@pytest.mark.parametrize(
    ("overwrite", "offered"), [(None, False), (False, True)], ids=["no such flag", "with the flag"]
)
def test_overwriting_is_offered_where_it_can_be_had(output, scene_dataset, overwrite, offered, caplog):
    """Neither run-all nor compare-prompts has the flag, and both run stages that have it."""
    _complete(output, scene_dataset)
    with caplog.at_level(logging.INFO, "ray_wsss"):
        output.log_finished(overwrite)
    assert ("--overwrite makes it again" in caplog.text) == offered
    assert f"{output.out} is already finished" in caplog.text
    other = Output(output.out, "label", {"label.tau": 0.4})
    with pytest.raises(UserError, match="choose another folder") as refused:
        ChunkRun.start(other, scene_dataset, overwrite=overwrite)
    assert ("--overwrite" in str(refused.value)) == offered
