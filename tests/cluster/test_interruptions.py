"""Whatever is killed, every image is labelled once, with the bytes of an undisturbed run."""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread

import pytest

from ray_wsss.cluster.stages.label import run_label
from ray_wsss.config import Recipe
from ray_wsss.config.overrides import override
from ray_wsss.config.resources import Cluster, Resources
from ray_wsss.data.reader import ShardReader
from ray_wsss.errors import UserError
from ray_wsss.runs.run_report import RunReport

pytestmark = pytest.mark.usefixtures("ray_cluster")

CHUNKS = 10
IMAGES = CHUNKS * 64
PATIENCE_S = 180
FLAGS = ["--preset", "demo", "--label.scales", "1.0", "--label.no-flip"]


@pytest.fixture(scope="module")
def recipe(small_recipe: Recipe) -> Recipe:
    return override(small_recipe, {"label.scales": (1.0,), "label.flip": False, "label.batch_size": 32})


@pytest.fixture(scope="module")
def many(write_dataset: Callable[[Path, int], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("many"), IMAGES)


@pytest.fixture(scope="module")
def finished(
    ray_cluster: None, recipe: Recipe, many: Path, classifier: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "labels"
    label(recipe, many, classifier, out)
    assert ShardReader(out).image_ids == ShardReader(many).image_ids
    return out


@pytest.fixture(scope="module")
def undisturbed(finished: Path) -> dict[str, str]:
    return hashes(finished)


def label(
    recipe: Recipe, dataset: Path, classifier: Path, out: Path, *, overwrite: bool = False
) -> RunReport:
    return run_label(
        recipe,
        dataset=dataset,
        classifier=classifier,
        out=out,
        resources=Resources(actors=1),
        cluster=Cluster(),
        overwrite=overwrite,
    )


def parts(out: Path) -> list[Path]:
    return sorted((out / "shards").glob("*.parquet"))


def hashes(out: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in parts(out)}


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "nothing happens any more"
        time.sleep(0.02)


def wait_for_parts(out: Path, count: int, driver: subprocess.Popen) -> None:
    wait_for(lambda: len(parts(out)) >= count or driver.poll() is not None)


def start_driver(dataset: Path, classifier: Path, out: Path) -> subprocess.Popen:
    import ray

    address = ray.get_runtime_context().gcs_address
    command = [sys.executable, "-m", "ray_wsss", "label", "--address", address, *FLAGS]
    paths = ["--dataset", str(dataset), "--classifier", str(classifier), "--out", str(out)]
    return subprocess.Popen([*command, *paths], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def actor_pids() -> Iterator[int]:
    for process in Path("/proc").glob("[0-9]*"):
        try:
            title = (process / "cmdline").read_bytes()
        except OSError:
            continue
        if b"SamLabeller" in title and title.startswith(b"ray::"):
            yield int(process.name)


@pytest.mark.parametrize(
    "kill_at", [(5,), pytest.param((1, 5, 9), marks=pytest.mark.slow)], ids=["at 50 %", "at 10, 50 and 90 %"]
)
def test_a_killed_driver_goes_on_where_it_was(
    many: Path, classifier: Path, undisturbed: dict[str, str], tmp_path: Path, kill_at: tuple[int, ...]
) -> None:
    out = tmp_path / "labels"
    written: dict[Path, int] = {}
    for count in kill_at:
        with start_driver(many, classifier, out) as driver:
            wait_for_parts(out, count, driver)
            assert driver.poll() is None, driver.communicate()[0]
            driver.send_signal(signal.SIGKILL)
        time.sleep(2)  # its actors may still finish what they are at
        kept = {path: path.stat().st_mtime_ns for path in parts(out)}
        assert written.items() <= kept.items()
        written = kept
    driver = start_driver(many, classifier, out)
    said, _ = driver.communicate(timeout=PATIENCE_S)
    assert driver.returncode == 0, said
    assert f"{64 * len(written)} images are done already" in said
    assert f"{IMAGES} images labelled, 0 errors" in said
    assert hashes(out) == undisturbed
    # Not one of the images that had been committed was done again.
    assert written.items() <= {path: path.stat().st_mtime_ns for path in parts(out)}.items()


def test_a_killed_actor_costs_one_chunk_at_most(
    recipe: Recipe, many: Path, classifier: Path, undisturbed: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "labels"
    reports: list[RunReport] = []
    run = Thread(target=lambda: reports.append(label(recipe, many, classifier, out)))
    run.start()
    wait_for(lambda: len(parts(out)) >= 3)
    (victim,) = actor_pids()
    os.kill(victim, signal.SIGKILL)
    run.join(PATIENCE_S)
    assert victim not in set(actor_pids())
    assert [report.total.images for report in reports] == [IMAGES]
    assert hashes(out) == undisturbed
    assert {path.name for path in (out / "shards").iterdir()} == set(undisturbed)


@pytest.mark.slow
def test_a_lost_node_costs_what_it_had_in_work(
    many: Path, classifier: Path, undisturbed: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "labels"
    script = Path(__file__).with_name("lose_a_node.py")
    command = [sys.executable, str(script), str(many), str(classifier), str(out)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=2 * PATIENCE_S)
    assert run.returncode == 0, run.stdout + run.stderr
    assert hashes(out) == undisturbed
    assert {path.name for path in (out / "shards").iterdir()} == set(undisturbed)


def test_damaged_and_foreign_parts_are_made_again(
    recipe: Recipe,
    many: Path,
    classifier: Path,
    finished: Path,
    undisturbed: dict[str, str],
    tmp_path: Path,
) -> None:
    out = tmp_path / "labels"
    shutil.copytree(finished, out)
    damaged, missing = parts(out)[1], parts(out)[4]
    damaged.write_bytes(damaged.read_bytes()[:1000])
    missing.unlink()
    (out / "shards" / "part-000099.parquet").write_bytes(parts(out)[0].read_bytes())
    (out / "shards" / ".part-000004.parquet.0123.tmp").write_bytes(b"half a file")
    assert label(recipe, many, classifier, out).done_before == IMAGES - 2 * 64
    assert hashes(out) == undisturbed
    assert {path.name for path in (out / "shards").iterdir()} == set(undisturbed)


def test_other_settings_are_refused_and_never_mixed(
    recipe: Recipe,
    many: Path,
    classifier: Path,
    finished: Path,
    undisturbed: dict[str, str],
    tmp_path: Path,
) -> None:
    out = tmp_path / "labels"
    shutil.copytree(finished, out)
    changed = override(recipe, {"label.tau": 0.9, "label.min_distance_px": 3})
    with pytest.raises(UserError, match=r"label\.min_distance_px"):
        label(changed, many, classifier, out)
    assert hashes(out) == undisturbed
    label(changed, many, classifier, out, overwrite=True)
    assert set(hashes(out)) == set(undisturbed)
    assert not set(hashes(out).values()) & set(undisturbed.values())
