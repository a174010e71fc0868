"""Split on Ray: every image goes to exactly one part, as it was."""

import json
from pathlib import Path

import pyarrow as pa
import pytest
from PIL import Image

from ray_wsss.cli import main
from ray_wsss.cluster.stages import split
from ray_wsss.config.resources import Cluster
from ray_wsss.data.reader import ShardReader
from ray_wsss.data.scenes import make_scene
from ray_wsss.data.schema import REMARK_SCHEMA, DatasetMetadata, write_table_atomically

pytestmark = pytest.mark.usefixtures("ray_cluster")


def test_parts_hold_all_images_as_they_were(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(split, "ROWS_PER_SHARD", 8)
    given = tmp_path / "given"
    given.mkdir()
    (given / "shards").symlink_to(dataset / "shards")
    metadata = json.loads((dataset / "metadata.json").read_text())
    (given / "metadata.json").write_text(json.dumps(metadata))
    whole = ShardReader(given)
    remark = {name: [whole.image_ids[5] if name == "image_id" else name] for name in REMARK_SCHEMA.names}
    write_table_atomically(pa.table(remark, schema=REMARK_SCHEMA), given / "remarks.parquet")

    outs = [tmp_path / "train", tmp_path / "val"]
    words = ["split", "--dataset", given, "--out", *outs, "--fractions", "0.75", "0.25"]
    assert main([str(word) for word in words]) == 0
    readers = [ShardReader(out) for out in outs]
    told = capsys.readouterr().out
    assert f"val: {len(readers[1])} images" in told
    lacking = [
        out
        for out, reader in zip(outs, readers)
        if len({label for row in range(len(reader)) for label in reader.read(row)["image_labels"]}) < 6
    ]
    assert told.count("no image has") == len(lacking)
    assert 4 <= len(readers[1]) <= 8
    assert sorted(name for reader in readers for name in reader.image_ids) == sorted(whole.image_ids)
    for out, reader in zip(outs, readers):
        found = DatasetMetadata.load(out)
        assert found.class_names == DatasetMetadata.load(given).class_names
        assert (found.images, found.has_masks) == (len(reader), True)
        assert dict(found.remarks) == ({"remark": 1} if whole.image_ids[5] in reader.image_ids else {})
        for row in range(len(reader)):
            expected = whole.read(whole.index_of(reader.image_ids[row]))
            assert reader.read(row) == expected
    assert main([str(word) for word in words]) == 1
    assert "is already a data set" in capsys.readouterr().err


def test_images_that_look_alike_on_both_sides_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scene = Image.fromarray(make_scene(5).image)
    for k in range(4):
        folder = tmp_path / "photos" / "cat"
        folder.mkdir(parents=True, exist_ok=True)
        scene.save(folder / f"{k}.jpg", quality=80 + k)  # other bytes, the same picture
    whole, parts = tmp_path / "whole", [tmp_path / "train", tmp_path / "val"]
    assert main(["ingest", "folder", "--root", str(tmp_path / "photos"), "--out", str(whole)]) == 0
    words = ["split", "--dataset", whole, "--out", *parts, "--fractions", "0.5", "0.5"]
    assert main([str(word) for word in words]) == 0
    told = capsys.readouterr().out
    assert f"2 images of {parts[1]} look like images of {parts[0]}, which is trained on" in told


def test_an_interrupted_split_keeps_its_shards(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    outs = [tmp_path / "train", tmp_path / "val"]

    def run(seed: int) -> dict[Path, int]:
        options = {"dataset": dataset, "fractions": (0.75, 0.25), "seed": seed, "cluster": Cluster()}
        with monkeypatch.context() as patch:
            patch.setattr(split, "finish_ingest", interrupt)
            with pytest.raises(KeyboardInterrupt):
                split.run_split(outs=outs, **options)
        made = {path: path.stat().st_mtime_ns for out in outs for path in (out / "shards").iterdir()}
        caplog.set_level("INFO")
        caplog.clear()
        return made

    others, made = run(seed=1), run(seed=0)
    assert made.keys() == others.keys()
    assert not made.items() & others.items()  # another division keeps none
    split.run_split(dataset=dataset, outs=outs, fractions=(0.75, 0.25), seed=0, cluster=Cluster())
    assert f"kept 1 of 1 shards of {outs[1]}, from an interrupted split" in caplog.messages
    assert made == {path: path.stat().st_mtime_ns for out in outs for path in (out / "shards").iterdir()}
    assert sum(len(ShardReader(out)) for out in outs) == len(ShardReader(dataset))
