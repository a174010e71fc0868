"""Images on which a stage fails, on Ray: the rest is done, and too many of them stop the run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ray_wsss.benchmark.scale import write_dots
from ray_wsss.cli import main
from ray_wsss.cluster.run_chunks import Stage, run_chunks
from ray_wsss.config.error_limit import ErrorLimit
from ray_wsss.config.resources import Cluster, Resources
from ray_wsss.data.scenes import make_scene
from ray_wsss.errors import TooManyFailedError
from ray_wsss.models.promptable.frame import InputFrame
from ray_wsss.runs.manifest import Output
from ray_wsss.runs.prepared_images import PrepareImages
from ray_wsss.runs.run_report import RunReport
from ray_wsss.runs.tally import Tally

pytestmark = pytest.mark.usefixtures("ray_cluster")

CHUNKS = 10


def _poisoned(is_poison: Callable[[int], bool]) -> type:
    """A stage that fails on the images of these numbers; defined here, so that Ray sends it by value."""

    class Poisoned:
        rows_per_group = 64

        def __call__(self, images: Any) -> tuple[pa.Table, Tally]:
            for image in images:
                if image.error is None and is_poison(int(image.image_id)):
                    raise ArithmeticError(f"image {int(image.image_id)} is poison")
            errors = [image.error for image in images]
            ids = [image.image_id for image in images]
            failed = sum(error is not None for error in errors)
            table = pa.table({"image_id": ids, "error": pa.array(errors, pa.string())})
            return table, Tally(images=len(ids) - failed, errors=failed)

    return Poisoned


@pytest.fixture(scope="module")
def dots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dots(tmp_path_factory.mktemp("dots"), CHUNKS)


def _run(dots: Path, out: Path, is_poison: Callable[[int], bool], share: float = 0.5) -> RunReport:
    return run_chunks(
        Output(out, "embed", {}),
        Stage(stage_class=_poisoned(is_poison), arguments={}, prepare=PrepareImages(frame=InputFrame(16))),
        dataset=dots,
        resources=Resources(actors=1),
        cluster=Cluster(),
        limit=ErrorLimit(max_error_share=share),
    )


def test_poison_stops_nothing_and_is_listed(dots: Path, tmp_path: Path) -> None:
    report = _run(dots, tmp_path / "out", lambda k: k in (3, 100, 101))
    assert (report.total.images, report.total.errors) == (CHUNKS * 64 - 3, 3)
    assert pq.read_table(tmp_path / "out" / "errors.parquet").to_pylist() == [
        {"image_id": f"{k:08d}", "reason": f"ArithmeticError: image {k} is poison"} for k in (3, 100, 101)
    ]
    assert pq.read_table(tmp_path / "out" / "shards").num_rows == CHUNKS * 64


def test_a_wrong_set_up_stops_soon_and_is_done_again(
    dots: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray_wsss.config.error_limit.JUDGED_AFTER", 128)
    out = tmp_path / "out"
    with pytest.raises(
        TooManyFailedError, match=r"the first one: ArithmeticError: image 0 is poison"
    ) as told:
        _run(dots, out, lambda k: k < 64 * CHUNKS - 64)
    assert "128 of 128 images failed; expected a share of at most 0.5 (--max-error-share)" in str(told.value)
    assert not (out / "errors.parquet").exists()
    report = _run(dots, out, lambda k: False)
    assert (report.total.images, report.total.errors) == (CHUNKS * 64, 0)
    assert not (out / "errors.parquet").exists()


def test_the_share_that_may_fail_is_the_users(dots: Path, tmp_path: Path) -> None:
    with pytest.raises(TooManyFailedError, match="480 of 640 images failed"):
        _run(dots, tmp_path / "out", lambda k: k % 4 > 0)
    report = _run(dots, tmp_path / "out", lambda k: k % 4 > 0, share=0.8)
    assert report.total.errors == 480
    assert pq.read_table(tmp_path / "out" / "errors.parquet").num_rows == 480


def test_predict_leaves_poison_out(
    segmenter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The stage fails on a wide image, as if its convolutions did."""

    def fail_on_wide_images() -> type:
        from ray_wsss.stages.predict_folder import FolderPredictor

        class Poisoned(FolderPredictor):
            def __call__(self, masks: Any, images: Any) -> Any:
                if any(image.image_hw[1] == 80 for image in images if image.error is None):
                    raise ArithmeticError("too wide")
                return super().__call__(masks, images)

        return Poisoned

    monkeypatch.setattr("ray_wsss.cluster.stages.predict.FolderPredictor", fail_on_wide_images())
    images, out = tmp_path / "images", tmp_path / "out"
    images.mkdir()
    for name, width in {"a": 64, "b": 80, "c": 48, "d": 64}.items():
        Image.fromarray(make_scene(1, 48, width).image).save(images / f"{name}.png")
    paths = ["--images", str(images), "--segmenter", str(segmenter), "--out", str(out)]
    assert main(["predict", "--preset", "demo", *paths]) == 0
    assert "3 images predicted" in capsys.readouterr().out
    failed = {"image": "b.png", "reason": "ArithmeticError: too wide"}
    assert pq.read_table(out / "errors.parquet").to_pylist() == [failed]
    for name, width in {"a": 64, "c": 48, "d": 64}.items():
        with Image.open(out / "masks" / f"{name}.png") as mask:
            assert np.asarray(mask).shape == (48, width)

    assert main(["predict", "--preset", "demo", *paths, "--overwrite", "--max-error-share", "0.2"]) == 1
    assert "1 of 4 images failed; expected a share of at most 0.2" in capsys.readouterr().err
