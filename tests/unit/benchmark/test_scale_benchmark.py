"""The figures of the benchmark of scaling, and of what it is extrapolated to."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ray_wsss.benchmark.projection import Deployment, project
from ray_wsss.benchmark.scale import Sleeper, common_time, read_times, steady_rate, write_dots
from ray_wsss.errors import UserError
from ray_wsss.models.promptable.frame import InputFrame
from ray_wsss.runs.parts import Parts
from ray_wsss.runs.prepared_images import PreparedImage, PrepareImages
from ray_wsss.runs.read_chunks import plan_chunks

JOB = Path(__file__).parents[3] / "jobs" / "benchmark.py"


def test_actors_that_start_late_and_end_early_don_t_count() -> None:
    early = [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]  # one in two seconds
    late = [5.0, 6.0, 7.0, 8.0, 9.0]  # one a second
    ended = {1: early, 2: late}
    assert common_time(ended) == (5.0, 9.0)
    with pytest.raises(UserError, match="done with 2 chunks"):
        steady_rate({1: early, 2: late[:4]})
    assert steady_rate({1: [*early, 12.0], 2: [*late, 10.0]}) == pytest.approx(0.5 + 1)


def test_a_wait_lowers_the_rate() -> None:
    assert steady_rate({1: [0.0, 1.0, 2.0, 4.0]}) == pytest.approx(3 / 4)


def test_what_the_sleeping_stage_writes_is_what_is_read(tmp_path: Path) -> None:
    dataset = write_dots(tmp_path / "dots", 5)
    chunks = plan_chunks(dataset)
    assert [chunk.rows for chunk in chunks] == [64] * 5
    assert write_dots(dataset, 5) == dataset
    images = PrepareImages(frame=InputFrame(16))(chunks[4])
    assert {image.error for image in images} == {None}
    parts, stage = Parts(tmp_path / "out", ""), Sleeper(0.01)
    for chunk in chunks:
        parts.write(chunk, *stage([PreparedImage(image_id="a")] * 64))
    (moments,) = read_times(parts.out).values()
    assert len(moments) == 5
    assert steady_rate({1: moments}) < 1 / 0.01


def test_a_projection_by_hand() -> None:
    figures = project(
        Deployment(
            images=6400,
            nodes=10,
            actors_per_node=2,
            images_per_s_per_actor=3.2,
            driver_cpu_s_per_chunk=0.5,
            footer_s=0.1,
            image_mb=0.5,
        )
    )
    assert figures["run"] == pytest.approx({"images_per_s": 64, "hours": 100 / 3600, "actors": 20})
    assert figures["head"]["chunks"] == figures["storage"]["parts"] == 100
    assert figures["head"]["driver_cores"] == pytest.approx(0.5)
    assert figures["head"]["most_images_per_s"] == pytest.approx(128)
    assert figures["metadata"]["resume_hours_one_by_one"] == pytest.approx(10 / 3600)
    assert figures["metadata"]["resume_hours_one_by_one"] == 32 * figures["metadata"]["resume_hours"]
    assert figures["storage"]["read_gb_per_s"] == pytest.approx(0.032)
    assert figures["storage"]["puts_per_s"] == pytest.approx(1)


def test_a_driver_gives_way_above_its_share() -> None:
    few, many = (project(Deployment(nodes=nodes)) for nodes in (100, 10_000))
    assert few["share"]["driver"] < 1 < many["share"]["driver"]
    assert many["head"]["drivers"] >= many["share"]["driver"]


@pytest.mark.parametrize("flag", ["nodes", "footer_s", "images"])
def test_what_is_not_positive(flag: str) -> None:
    with pytest.raises(UserError, match=f"--{flag.replace('_', '-')} is 0; expected more than 0"):
        Deployment(**{flag: 0})


def test_the_command(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    command = [sys.executable, str(JOB), "project", "--nodes", "500", "--json", str(figures)]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    assert json.loads(figures.read_text(encoding="utf-8")) == project(Deployment(nodes=500))
