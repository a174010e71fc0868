"""`ray-wsss report` on a whole run, on parts of it, and on what is none."""

import base64
import hashlib
import io
import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ray_wsss.cli import main
from ray_wsss.data.images import decode_mask, describe_labels
from ray_wsss.data.reader import ShardReader
from ray_wsss.runs.manifest import Output
from ray_wsss.storage import copy_file


class Page(HTMLParser):
    """The elements of a page, and the text of scripts by id."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.html = path.read_text(encoding="utf-8")
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.scripts: dict[str, str] = {}
        self.current: tuple[str, dict[str, str | None]] = ("", {})
        self.feed(self.html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.current = self.tags[-1]

    def handle_endtag(self, tag: str) -> None:
        self.current = ("", {})

    def handle_data(self, data: str) -> None:
        tag, attributes = self.current
        self.texts.append((tag, data))
        if tag == "script":
            name = attributes.get("id") or "code"
            self.scripts[name] = self.scripts.get(name, "") + data

    @property
    def text(self) -> str:
        return " ".join(text for tag, text in self.texts if tag not in ("script", "style"))

    @property
    def gallery(self) -> dict[str, Any]:
        return json.loads(self.scripts["data"])

    def pictures(self) -> list[dict[str, str]]:
        blocks = sorted(
            (name for name in self.scripts if name.startswith("pictures-")),
            key=lambda name: int(name.partition("-")[2]),
        )
        return [images for name in blocks for images in json.loads(self.scripts[name])]


def report(*words: object, out: Path) -> Page:
    assert main(["report", *map(str, words), "--out", str(out)]) == 0
    return Page(out)


@pytest.fixture(scope="module")
def page(run: Any, tmp_path_factory: pytest.TempPathFactory) -> Page:
    return report(run.root, "--images", "all", out=tmp_path_factory.mktemp("page") / "report.html")


def pixels(url: str) -> Image.Image:
    kind, _, data = url.partition(";base64,")
    image = Image.open(io.BytesIO(base64.b64decode(data)))
    assert kind == f"data:image/{(image.format or '').lower()}"
    return image


def test_nothing_is_fetched_and_no_other_script_runs(page: Page) -> None:
    policy = next(a["content"] or "" for tag, a in page.tags if a.get("http-equiv"))
    rules = {rule.split()[0]: " ".join(rule.split()[1:]) for rule in policy.split(";")}
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    for name, text in (("script", page.scripts["code"]), ("style", dict(page.texts)["style"])):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert rules[f"{name}-src"] == f"'sha256-{digest}'"
    fetching = {"src", "srcset", "style", "onerror", "onclick"}
    assert not [(tag, a) for tag, a in page.tags if a.keys() & fetching]
    assert not [a for tag, a in page.tags if tag in ("link", "iframe", "img", "object")]
    assert all((a.get("href") or "#").startswith("#") for _, a in page.tags)


def test_names_are_text(page: Page, run: Any) -> None:
    assert run.evil_image in {entry["id"] for entry in page.gallery["facts"]}
    assert page.gallery["classNames"] == list(run.class_names)
    for name in (*run.evil_names, run.root.name):
        assert name in page.text
    assert sum(tag == "script" for tag, _ in page.tags) == 2 + 2  # two blocks of pictures, data, code
    assert page.html.count("</script>") == 4
    assert not [tag for tag, a in page.tags if tag in ("i", "img")]
    assert page.html.count("<b>bold") == page.html.count("<b>reason") == 0


def test_a_failure_is_listed_once_where_one_data_set_has_two_paths(
    write_dataset: Callable[[Path, int], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run").mkdir()
    dataset = write_dataset(tmp_path / "run", 2)
    errors = {"image_id": ["cut"], "path": ["cut off.png"], "reason": ["truncated PNG"]}
    pq.write_table(pa.table(errors), dataset / "errors.parquet")
    monkeypatch.chdir(tmp_path)
    page = report("run", "--dataset", dataset, "--skip-cams", out=tmp_path / "report.html")
    assert page.text.count("cut off.png") == 1


def test_gallery_shows_what_the_stages_made(page: Page, run: Any) -> None:
    facts, pictures = page.gallery["facts"], page.pictures()
    labels, dataset = ShardReader(run.root / "labels"), ShardReader(run.dataset)
    assert len(facts) == len(pictures) == 23  # one of 24 failed
    names = ("image", "cam", "points", "masks", "label", "prediction", "truth")
    assert page.gallery["layers"].keys() == set(names)
    for entry, layers in zip(facts, pictures):
        label = labels.read(labels.index_of(entry["id"]))
        assert len(entry["masks"]) == len(label["segments"])
        expected = {"label": label["pseudo_label"]}
        expected["truth"] = dataset.read(dataset.index_of(entry["id"]))["mask"]
        for name, png in expected.items():
            shown = np.asarray(pixels(layers[name]))
            np.testing.assert_array_equal(shown, decode_mask(png))
        assert pixels(layers["image"]).size == (entry["width"], entry["height"])
        points = [point for mask in entry["masks"] for point in mask["points"]]
        assert all(0 <= x <= entry["width"] and 0 <= y <= entry["height"] for x, y in points)
        assert len(points) == sum(len(segment["points_xy"]) for segment in label["segments"])


def test_figures(page: Page, run: Any) -> None:
    measured = json.loads((run.root / "metrics.json").read_text())["pseudo_label"]
    assert f"{100 * measured['miou']:.1f}" in page.text
    # Its own count of the pseudo labels is that of evaluate, so there is one table.
    assert sum(tag == "table" and a.get("class") == "iou" for tag, a in page.tags) == 2
    assert "against their data set's masks" not in page.text
    assert re.search(r"12\.0 images/s in 2 s", page.text)
    for words in ("loss: image labels", "loss: pseudo labels", "resnet_tiny", "Most confused"):
        assert words in page.text
    assert "1 in all" in page.text
    assert "torch" in page.text


def test_a_third_each_of_best_worst_and_random(run: Any, tmp_path: Path) -> None:
    facts = report(run.root, "--images", "9", "--skip-cams", out=tmp_path / "r.html").gallery["facts"]
    all_of_them = ("--images", "all", "--skip-cams")
    everything = report(run.root, *all_of_them, out=tmp_path / "all.html").gallery["facts"]
    groups = {g: [f["iou"] for f in facts if f["group"] == g] for g in ("best", "worst", "random")}
    assert [len(group) for group in groups.values()] == [3, 3, 3]
    ranked = sorted(f["iou"] for f in everything if f["iou"] is not None)
    assert sorted(groups["worst"]) == ranked[:3]
    assert sorted(groups["best"]) == ranked[-3:]
    assert not any("cam" in pictures for pictures in Page(tmp_path / "all.html").pictures())


def test_the_same_by_flags(run: Any, page: Page, tmp_path: Path) -> None:
    flags = [f"--{name}={run.root / name}" for name in ("labels", "classifier", "segmenter")]
    flags += [f"--dataset={run.dataset}", f"--metrics={run.root / 'metrics.json'}", "--images=all"]
    again = report(*flags, out=tmp_path / "r.html")
    assert again.gallery == page.gallery
    assert again.pictures() == page.pictures()


@pytest.mark.parametrize(
    ("kept", "told"),
    [
        (("labels",), "No classifier that made these labels"),
        (("classifier",), "No pseudo labels"),
        (("segmenter",), "No data set"),
        (("metrics.json",), "No training"),
    ],
)
def test_what_is_missing_is_said(
    run: Any, tmp_path: Path, kept: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    part = tmp_path / "part"
    part.mkdir()
    for name in kept:
        source = run.root / name
        copy = shutil.copytree if source.is_dir() else shutil.copyfile
        copy(source, part / name)
    page = report(part, "--images", "2", out=tmp_path / "r.html")
    assert told in page.text
    assert f"not in it: {told}" in capsys.readouterr().out


def test_a_run_that_is_not_at_its_end_has_a_report(run: Any, tmp_path: Path) -> None:
    part = tmp_path / "part"
    shutil.copytree(run.root, part)
    shutil.rmtree(part / "labels" / "shards")
    for stage in ("labels", "segmenter", "classifier"):
        manifest = part / stage / "manifest.json"
        manifest.write_text(manifest.read_text().replace('"finished"', '"unfinished"'))
    page = report(part, "--images", "2", out=tmp_path / "r.html")
    assert f"{part / 'segmenter'} is unfinished" in page.text
    assert f"{part / 'labels'} holds no labels yet" in page.text
    assert page.gallery["layers"].keys() == {"image", "truth"}


def test_networks_of_other_classes_are_left_out(run: Any, foreign_dataset: Path, tmp_path: Path) -> None:
    flags = ["--dataset", foreign_dataset, "--images", "2"]
    page = report(run.root / "classifier", *flags, out=tmp_path / "r.html")
    assert "expected the same in the same order" in page.text
    assert "cam" not in page.gallery["layers"]


def test_a_single_stage_is_a_run(run: Any, tmp_path: Path) -> None:
    page = report(run.root / "labels", "--images", "3", out=tmp_path / "r.html")
    assert len(page.gallery["facts"]) == 3
    assert page.gallery["layers"].keys() == {"image", "points", "masks", "label", "truth"}


def test_a_moved_data_set_is_found(run: Any, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(run.root, moved)
    shutil.copytree(run.dataset, moved / "data")
    manifest = moved / "labels" / "manifest.json"
    manifest.write_text(manifest.read_text().replace(str(run.dataset), "/nowhere/data"))
    assert str(moved / "data") in report(moved, "--images", "1", out=tmp_path / "r.html").text
    shutil.rmtree(moved / "data")
    page = report(moved, out=tmp_path / "r.html")
    assert "is not at /nowhere/data any more" in page.text
    assert "gallery" not in {a.get("id") for _, a in page.tags}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["{tmp}"], "holds nothing of ray-wsss"),
        (["{tmp}/none"], "is not a folder"),
        ([], "nothing to report on"),
        (["{run}", "--labels", "{run}/classifier"], "holds the output of train-classifier"),
        (["{run}", "--metrics", "{run}/none.json"], "can't be read as JSON"),
        (["{run}", "--images", "-1"], "--images is -1"),
        (["{run}", "--thumbnail-px", "1"], "--thumbnail-px is 1"),
    ],
)
def test_errors(
    words: list[str], told: str, run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    filled = [word.format(tmp=tmp_path, run=run.root) for word in words]
    assert main(["report", *filled, "--out", str(tmp_path / "r.html")]) == 1
    assert told in capsys.readouterr().err
    assert not (tmp_path / "r.html").exists()


def test_a_run_in_a_store(run: Any, bucket: Path, tmp_path: Path) -> None:
    for path in run.root.parent.rglob("*"):
        if path.is_file():
            copy_file(path, bucket / path.relative_to(run.root.parent).as_posix())
    flags = ["--dataset", bucket / "dataset", "--images", "3", "--skip-predictions"]
    assert main(["report", *map(str, [bucket / run.root.name, *flags, "--out", bucket / "r.html"])]) == 0
    copy_file(bucket / "r.html", tmp_path / "r.html")
    assert len(Page(tmp_path / "r.html").pictures()) == 3


def test_predictions_of_predict_are_shown(run: Any, tmp_path: Path) -> None:
    predictions = tmp_path / "masks"
    output = Output(predictions, "predict", {})
    output.begin()
    dataset = ShardReader(run.dataset)
    names = {name: f"{k}.png" for k, name in enumerate(dataset.image_ids)}
    (predictions / "masks").mkdir()
    for k in range(len(dataset)):
        truth = dataset.read(k, ["mask"])["mask"]
        (predictions / "masks" / f"{k}.png").write_bytes(truth)
    (predictions / "masks.json").write_text(json.dumps(names))
    (predictions / "classes.json").write_text(json.dumps(describe_labels(run.class_names)))
    output.finish()
    page = report(run.root, "--predictions", predictions, "--images", "5", out=tmp_path / "r.html")
    assert [entry["predictionIou"] for entry in page.gallery["facts"]] == [1.0] * 5
    assert all(layers["prediction"] == layers["truth"] for layers in page.pictures())
