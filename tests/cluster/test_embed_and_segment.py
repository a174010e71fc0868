"""The cache and the segment maps on Ray: made once, read by label, counted for the dashboard."""

import time
import urllib.request
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from ray_wsss.cluster.stages.embed import run_embed
from ray_wsss.cluster.stages.extract_features import run_extract_features
from ray_wsss.cluster.stages.label import run_label
from ray_wsss.cluster.stages.segment_everything import run_segment_everything
from ray_wsss.config import FeaturesConfig, Recipe
from ray_wsss.config.overrides import override
from ray_wsss.config.resources import Cluster, Resources
from ray_wsss.data.features import FeatureCrops
from ray_wsss.data.images import decode_mask, decode_segments
from ray_wsss.data.reader import ShardReader
from ray_wsss.errors import UserError
from ray_wsss.runs.run_report import RunReport, describe_run
from ray_wsss.stages.features.stored import views_of

pytestmark = pytest.mark.usefixtures("ray_cluster")
ON_RAY = {"resources": Resources(), "cluster": Cluster()}


@pytest.fixture(scope="module")
def embeddings(
    ray_cluster: None, small_recipe: Recipe, dataset: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("embedded") / "embeddings"
    report = run_embed(small_recipe, dataset=dataset, out=out, **ON_RAY)
    assert (report.total.images, report.total.errors) == (24, 0)
    return out


def test_labels_from_the_cache_are_the_live_ones(
    small_recipe: Recipe, dataset: Path, classifier: Path, labels: Path, embeddings: Path, tmp_path: Path
) -> None:
    inputs = {"dataset": dataset, "classifier": classifier, "embeddings": embeddings}
    report = run_label(small_recipe, out=tmp_path / "labels", **inputs, **ON_RAY)
    assert report.total.seconds["encode"] < 0.1 * report.total.seconds["cam"]
    live, cached = ShardReader(labels), ShardReader(tmp_path / "labels")
    assert live.image_ids == cached.image_ids
    maps = [[decode_mask(r.read(i)["pseudo_label"]) for i in range(24)] for r in (live, cached)]
    assert (np.stack(maps[0]) != np.stack(maps[1])).mean() < 1e-3


def test_features_on_ray_are_those_of_this_process(
    small_recipe: Recipe, dataset: Path, tmp_path: Path
) -> None:
    """Up to rounding, for the number of threads differs; a second run finds them finished."""
    made = []
    for actors in (0, 1):
        out, resources = tmp_path / str(actors), Resources(actors=actors)
        inputs = {"features": FeaturesConfig(flip=True), "dataset": dataset, "out": out}
        report = run_extract_features(small_recipe, resources=resources, cluster=Cluster(), **inputs)
        assert (report.total.images, report.total.errors) == (24, 0)
        again = run_extract_features(small_recipe, resources=resources, cluster=Cluster(), **inputs)
        assert (again.done_before, again.work_s) == (24, 0)
        crops = FeatureCrops(views_of(out))
        made.append([crops.read(name)[0].values.astype(np.float32) for name in crops.cache.image_ids])
    assert len(made[0]) == 24
    np.testing.assert_allclose(np.stack(made[1]), np.stack(made[0]), rtol=2e-3, atol=2e-3)


def test_embeddings_that_do_not_fit_are_refused(
    small_recipe: Recipe, write_dataset, classifier: Path, embeddings: Path, tmp_path: Path
) -> None:
    more = write_dataset(tmp_path, 25)
    with pytest.raises(UserError, match="lacks 1 of the 25 images"):
        run_label(
            small_recipe,
            dataset=more,
            classifier=classifier,
            embeddings=embeddings,
            out=tmp_path / "labels",
            **ON_RAY,
        )
    assert not (tmp_path / "labels").exists()


def test_segment_maps_from_the_cache_are_the_live_ones(
    small_recipe: Recipe, dataset: Path, embeddings: Path, tmp_path: Path
) -> None:
    recipe = override(small_recipe, {"segments.points_per_side": 4, "segments.stability_score_thresh": 0.8})
    maps = []
    for out, cache in ((tmp_path / "live", None), (tmp_path / "cached", embeddings)):
        run_segment_everything(recipe, dataset=dataset, out=out, embeddings=cache, **ON_RAY)
        reader = ShardReader(out)
        assert reader.image_ids == ShardReader(dataset).image_ids
        maps.append(np.stack([decode_segments(reader.read(i)["segment_map"]) for i in range(24)]))
    assert (maps[0] > 0).mean() > 0.5
    assert (maps[0] != maps[1]).mean() < 1e-2


def test_the_dashboards_counters_say_what_the_report_says(
    small_recipe: Recipe, dataset: Path, classifier: Path, tmp_path: Path
) -> None:
    import ray

    (node,) = ray.nodes()
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"

    def counted() -> Counter[str]:
        with urllib.request.urlopen(address) as response:
            lines = [line for line in response.read().decode().splitlines() if line.startswith("ray_wsss_")]
        totals: Counter[str] = Counter()
        for line in lines:
            if 'stage="label"' in line:
                totals[line.split("{")[0]] += float(line.rsplit(" ", 1)[1])  # type: ignore[assignment]
        return totals

    before = counted()
    inputs = {"dataset": dataset, "classifier": classifier}
    total = run_label(small_recipe, out=tmp_path / "labels", **inputs, **ON_RAY).total
    deadline = time.monotonic() + 30  # Ray collects every few seconds
    while (added := counted() - before)["ray_wsss_images_total"] < 24 and time.monotonic() < deadline:
        time.sleep(0.5)
    assert added["ray_wsss_images_total"] == total.images == 24
    assert added["ray_wsss_prompts_total"] == total.prompts
    assert added["ray_wsss_masks_total"] == total.masks
    assert added["ray_wsss_phase_seconds_total"] == pytest.approx(sum(total.seconds.values()), rel=1e-3)


def test_the_summary_names_the_slowest_part() -> None:
    report = RunReport(work_s=10.0, startup_s=3.0)
    report.total.images, report.total.errors = 190, 10
    report.total.seconds = {"decode": 12.0, "encode": 6.0, "cam": 3.0, "wait": 1.0}
    said = describe_run(report, "labelled")
    assert "190 images labelled, 10 errors" in said
    assert "20.0 images/s in 10 s, after 3 s of starting" in said
    assert "slowest part: encode; of the actors' time: encode 60%, cam 30%, wait 10%" in said
    report.total.seconds["wait"] = 20.0
    assert "slowest part: decode (the actors waited for decoded images)" in describe_run(report, "labelled")
