"""A stage that fails on an image: the others' results don't show it, and no image's fault is never hidden."""

import errno
import gc
from collections.abc import Callable, Sequence

import pyarrow as pa
import pytest
import torch

from ray_wsss.config import EmbedConfig, LabelConfig, SamConfig
from ray_wsss.errors import UserError
from ray_wsss.models.promptable.frame import InputFrame
from ray_wsss.models.sam.tiny import IMAGE_SIZE_PX
from ray_wsss.runs.failures import fault_of, reason_of
from ray_wsss.runs.parts import Parts
from ray_wsss.runs.prepared_images import PreparedImage, PrepareImages
from ray_wsss.runs.read_chunks import plan_chunks
from ray_wsss.runs.resilient import mark_failed, run_stage
from ray_wsss.runs.tally import Tally
from ray_wsss.stages.embed import SamEmbedder
from ray_wsss.stages.label import SamLabeller

SAM = SamConfig(name="tiny", precision="fp32")
OUT_OF_MEMORY = [
    torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later"),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"
    ),
    MemoryError(),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
]
OF_THE_SET_UP = [
    UserError("part-00000.parquet is damaged"),
    ModuleNotFoundError("no module named x"),
    OSError(errno.ENOSPC, "No space left on device"),
    RuntimeError("CUDA error: device-side assert triggered"),
    RuntimeError("CUDA error: an illegal memory access was encountered"),
]
OF_AN_IMAGE = [
    ValueError("no peak"),
    FloatingPointError("singular"),
    RuntimeError("shapes differ"),
    OSError("encoder error -2 when writing image file"),
    AssertionError(),
]


@pytest.fixture(autouse=True)
def nothing_old_to_collect():
    """Short memory collects garbage; going through all that pytest has imported takes seconds each time."""
    gc.freeze()
    yield
    gc.unfreeze()


class Stage:
    """Doubles as the stage's log: each call's image ids. ``fails`` raises for a call."""

    def __init__(self, fails: Callable[[list[str]], Exception | None]) -> None:
        self.fails, self.calls = fails, []

    def __call__(self, images: Sequence[PreparedImage]) -> tuple[pa.Table, Tally]:
        self.calls.append([image.image_id for image in images if image.error is None])
        error = self.fails(self.calls[-1])
        if error is not None:
            raise error
        errors = [image.error for image in images]
        table = pa.table({"image_id": [i.image_id for i in images], "error": pa.array(errors, pa.string())})
        failed = sum(e is not None for e in errors)
        return table, Tally(images=len(images) - failed, errors=failed)


def _images(count: int) -> list[PreparedImage]:
    return [PreparedImage(image_id=str(k)) for k in range(count)]


def _errors(table: pa.Table) -> dict[str, str]:
    return {row["image_id"]: row["error"] for row in table.to_pylist() if row["error"]}


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=repr)
@pytest.mark.parametrize("most", [1, 3, 8])
def test_short_memory_halves_the_images(error, most):
    stage = Stage(lambda ids: error if len(ids) > most else None)
    table, tally = run_stage(stage, _images(13))
    assert table["image_id"].to_pylist() == [str(k) for k in range(13)]
    assert (tally.images, tally.errors) == (13, 0)
    assert table["image_id"].num_chunks == 1
    assert [len(ids) for ids in stage.calls[:3]] == [13, 13, 6]


def test_an_image_beyond_the_memory_is_the_one_that_fails():
    stage = Stage(lambda ids: OUT_OF_MEMORY[0] if "5" in ids else None)
    table, tally = run_stage(stage, _images(8))
    assert _errors(table) == {"5": "OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."}
    assert (tally.images, tally.errors) == (7, 1)


@pytest.mark.parametrize("error", OF_AN_IMAGE, ids=repr)
def test_culprits_are_named_and_the_rest_goes_together(error):
    images = _images(9)
    images[4] = PreparedImage(image_id="4", error="truncated JPEG")
    stage = Stage(lambda ids: error if {"2", "7"} & set(ids) else None)
    table, tally = run_stage(stage, images)
    assert _errors(table) == {"2": reason_of(error), "4": "truncated JPEG", "7": reason_of(error)}
    assert (tally.images, tally.errors) == (6, 3)
    assert stage.calls[-1] == ["0", "1", "3", "5", "6", "8"]


def test_images_that_fail_only_together_are_done_alone():
    stage = Stage(lambda ids: ValueError("2 before 3") if {"2", "3"} <= set(ids) else None)
    table, tally = run_stage(stage, _images(5))
    assert (len(table), tally.images, tally.errors) == (5, 5, 0)


@pytest.mark.parametrize("error", OF_THE_SET_UP, ids=repr)
def test_what_no_image_is_to_blame_for_is_raised(error):
    stage = Stage(lambda ids: error)
    with pytest.raises(type(error)):
        run_stage(stage, _images(5))
    assert len(stage.calls) == 1
    assert fault_of(error) == "set-up"


def test_an_interruption_is_no_failure():
    def interrupt(ids: list[str]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_stage(Stage(interrupt), _images(2))


def test_a_stage_that_fails_on_marked_images_is_raised():
    stage = Stage(lambda ids: ValueError("always"))
    with pytest.raises(ValueError, match="always"):
        run_stage(stage, _images(2))


@pytest.fixture(params=["embed", "label"])
def real(request, classifier_dir) -> tuple[PrepareImages, SamEmbedder | SamLabeller]:
    prepare = PrepareImages(max_side_px=64, frame=InputFrame(IMAGE_SIZE_PX))
    if request.param == "embed":
        return prepare, SamEmbedder(EmbedConfig(), SAM)
    return prepare, SamLabeller(LabelConfig(scales=(1.0,), tau=0.3, min_distance_px=4), SAM, classifier_dir)


def _part(folder, chunk, done: tuple[pa.Table, Tally], stage) -> bytes:
    parts = Parts(folder, "run")
    parts.write(chunk, *done, stage.rows_per_group)
    return parts.path(chunk.index).read_bytes()


@pytest.mark.parametrize("error", [OUT_OF_MEMORY[0], ValueError("once")], ids=repr)
def test_a_failure_that_happened_once_leaves_no_trace(real, scene_dataset, tmp_path, error):
    prepare, stage = real
    chunk = plan_chunks(scene_dataset)[0]
    images = prepare(chunk)
    left = [error]

    def once(images):
        if left:
            raise left.pop()
        return stage(images)

    expected = _part(tmp_path / "expected", chunk, stage(images), stage)
    assert _part(tmp_path / "found", chunk, run_stage(once, images), stage) == expected
    assert not left


def test_a_culprit_is_as_if_it_could_not_be_decoded(real, scene_dataset, tmp_path):
    prepare, stage = real
    chunk = plan_chunks(scene_dataset)[0]
    images = prepare(chunk)
    culprit = images[2].image_id

    def poisoned(images):
        if any(image.image_id == culprit and image.error is None for image in images):
            raise ValueError("poison")
        return stage(images)

    marked = [mark_failed(i, "ValueError: poison") if i.image_id == culprit else i for i in images]
    expected = _part(tmp_path / "expected", chunk, stage(marked), stage)
    assert _part(tmp_path / "found", chunk, run_stage(poisoned, images), stage) == expected


def test_decoding_survives_an_exception_that_no_decoder_should_raise(scene_dataset, monkeypatch):
    chunk = plan_chunks(scene_dataset)[0]
    prepare = PrepareImages(frame=InputFrame(IMAGE_SIZE_PX))
    good = prepare(chunk)
    decoded = iter(range(chunk.rows))

    def decode(data, orientation):
        if next(decoded) == 1:
            raise MemoryError
        return good[0].for_sam

    monkeypatch.setattr("ray_wsss.runs.prepared_images.decode_image", decode)
    assert [image.error for image in prepare(chunk)] == [None, "MemoryError", None, None, None]
