"""Output folders: claimed once, resumed by the same command, never mixed."""

import json
import re
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_wsss.data.schema import write_table_atomically
from ray_wsss.errors import UserError
from ray_wsss.runs.manifest import (
    FORMAT,
    NewerFormatError,
    Output,
    dataset_hash,
    file_hash,
    read_manifest,
    require_finished,
)
from ray_wsss.version import __version__


@pytest.fixture
def output(tmp_path) -> Output:
    return Output(tmp_path / "out", "label", {"cpm.tau": 0.5, "scales": (1.0, 2.0), "dataset": "abc"})


def test_new_unfinished_finished(output):
    assert output.begin() == "new"
    assert output.begin() == "unfinished"
    with pytest.raises(UserError, match="is unfinished"):
        require_finished(output.out, "label")
    output.finish()
    assert output.begin() == "finished"
    require_finished(output.out, "label")
    assert [p.name for p in output.out.iterdir()] == ["manifest.json"]


def test_an_empty_folder_is_new(output):
    output.out.mkdir()
    assert output.begin() == "new"


def _leave_a_result(output: Output) -> None:
    part = output.out / "shards" / "part-000000.parquet"
    part.parent.mkdir()
    part.write_bytes(b"a part")


def test_other_settings_are_named(output):
    output.begin()
    _leave_a_result(output)
    other = Output(output.out, "label", {**output.depends_on, "cpm.tau": 0.4})
    with pytest.raises(UserError, match=r"another cpm.tau \(0.5, now 0.4\); choose another folder"):
        other.begin()
    more = Output(output.out, "label", {"cpm.tau": 0.4, "scales": (1.0,), "new": 1})
    with pytest.raises(UserError, match=r"another cpm.tau .* and 3 more"):
        more.begin()
    less = Output(output.out, "label", {"cpm.tau": 0.5, "scales": (1.0, 2.0)})
    with pytest.raises(UserError, match=r"another dataset \(abc, now not set\)"):
        less.begin()
    assert output.begin() == "unfinished"


@pytest.mark.parametrize("left", [[], ["runs.json"], ["masks.json", "runs.json"], ["empty.parquet"]], ids=str)
def test_a_claim_without_results_is_free(output, left):
    """A command that the cluster had no room for leaves its claim; other settings need no --overwrite."""
    output.begin()
    for name in left:
        (output.out / name).write_text("" if name.startswith("empty") else "[]")
    other = Output(output.out, "embed", {"sam.precision": "bf16"})
    assert other.begin() == "new"
    found = read_manifest(other.out)
    assert found is not None
    assert (found["stage"], found["state"]) == ("embed", "unfinished")
    with pytest.raises(UserError, match="was claimed by another embed run in the meantime"):
        output.finish()
    assert other.begin() == "unfinished"
    other.finish()
    with pytest.raises(UserError, match="holds the output of embed"):
        output.begin()


def test_another_stage_is_refused(output):
    output.begin()
    output.finish()
    with pytest.raises(UserError, match="holds the output of label; expected a folder for ingest"):
        Output(output.out, "ingest", output.depends_on).begin()
    with pytest.raises(UserError, match="holds the output of label; expected that of ingest"):
        require_finished(output.out, "ingest")
    with pytest.raises(UserError, match="is not an output of label"):
        require_finished(output.out.parent, "label")


def test_overwrite_replaces_our_output_only(output):
    output.begin()
    (output.out / "old.parquet").touch()
    output.finish()
    other = Output(output.out, "label", {"cpm.tau": 0.4})
    assert other.begin(overwrite=True) == "new"
    assert not (output.out / "old.parquet").exists()
    assert other.begin() == "unfinished"


@pytest.mark.parametrize("content", [{"name": "A web app"}, [1], {"stage": "label"}])
@pytest.mark.parametrize("overwrite", [True, False])
def test_a_foreign_folder_is_refused_and_left_alone(output, content, overwrite):
    output.out.mkdir()
    precious = output.out / "thesis.tex"
    precious.touch()
    with pytest.raises(UserError, match="is not an output of ray-wsss"):
        output.begin(overwrite=overwrite)
    manifest = output.out / "manifest.json"
    manifest.write_text(json.dumps(content))
    with pytest.raises(UserError, match="is not an output of ray-wsss"):
        output.begin(overwrite=overwrite)
    with pytest.raises(UserError, match="is not an output of label"):
        require_finished(output.out, "label")
    assert precious.exists()
    assert json.loads(manifest.read_text()) == content


def test_files_and_damaged_manifests_are_user_errors(output):
    output.out.write_text("")
    with pytest.raises(UserError, match="is a file"):
        output.begin()
    output.out.unlink()
    output.begin()
    (output.out / "manifest.json").write_text("{")
    with pytest.raises(UserError, match="not readable JSON"):
        output.begin(overwrite=True)
    with pytest.raises(UserError, match="not readable JSON"):
        require_finished(output.out, "label")


def test_file_hash(tmp_path):
    (tmp_path / "f").write_bytes(b"abc")
    assert file_hash(tmp_path / "f") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    with pytest.raises(UserError, match="can't be read"):
        file_hash(tmp_path / "absent")


def test_the_fingerprint_is_that_of_the_dependencies(output, tmp_path):
    same = Output(tmp_path / "elsewhere", "label", dict(reversed(output.depends_on.items())))
    assert output.fingerprint == same.fingerprint
    for stage, changed in (("embed", {}), ("label", {"cpm.tau": 0.6}), ("label", {"new": 1})):
        other = Output(output.out, stage, {**output.depends_on, **changed})
        assert other.fingerprint != output.fingerprint


def test_equal_numbers_have_equal_fingerprints(output):
    whole = Output(output.out, "label", {"tau": 1, "scales": [1, 2], "flip": True})
    assert (
        whole.fingerprint
        == Output(output.out, "label", {"tau": 1.0, "scales": (1.0, 2.0), "flip": True}).fingerprint
    )
    assert (
        whole.fingerprint
        != Output(output.out, "label", {"tau": 1, "scales": [1, 2], "flip": False}).fingerprint
    )


def test_a_reopened_output_is_unfinished(output):
    output.begin()
    output.finish()
    output.reopen()
    assert output.begin() == "unfinished"


def test_a_data_set_is_known_by_its_content(scene_dataset, tmp_path):
    original = dataset_hash(scene_dataset)
    names = ("same", "metadata", "image", "rows", "renamed", "fewer", "more")
    copies = {name: tmp_path / name for name in names}
    for copy in copies.values():
        shutil.copytree(scene_dataset, copy)
    metadata = copies["metadata"] / "metadata.json"
    metadata.write_text(metadata.read_text().replace('"coco"', '"voc"'))
    shard = sorted((copies["image"] / "shards").iterdir())[1]
    table = pq.read_table(shard)
    images = [table["image"][0].as_py() + b"\0", *table["image"].to_pylist()[1:]]
    at = table.schema.get_field_index("image")
    table = table.set_column(at, table.schema.field(at), pa.array(images, table.schema.field(at).type))
    write_table_atomically(table, shard)
    shard = copies["rows"] / "shards" / shard.name
    write_table_atomically(pq.read_table(shard).slice(1), shard)
    last = sorted((copies["renamed"] / "shards").iterdir())[-1]
    last = last.rename(last.with_name("part-99999.parquet"))
    sorted((copies["fewer"] / "shards").iterdir())[2].unlink()
    shutil.copy(last, copies["more"] / "shards")
    hashes = {name: dataset_hash(copy) for name, copy in copies.items()}
    assert hashes.pop("same") == original
    assert original not in hashes.values()
    assert len(set(hashes.values())) == len(hashes)


def test_any_other_dependency_is_another_fingerprint(output):
    as_read_back = json.loads(json.dumps(output.depends_on))
    assert Output(output.out, "label", as_read_back).fingerprint == output.fingerprint
    changes = [{"cpm.tau": 0.6}, {"cpm.tau": "0.5"}, {"cpm.tau": None}, {"scales": (2.0, 1.0)}, {"new": None}]
    others = [Output(output.out, "label", {**output.depends_on, **changed}) for changed in changes]
    others += [Output(output.out, "embed", output.depends_on), Output(output.out, "label", {})]
    assert len({output.fingerprint, *(other.fingerprint for other in others)}) == 1 + len(others)


def test_a_data_set_that_can_not_be_read(scene_dataset, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(scene_dataset, copy)
    shard = sorted((copy / "shards").iterdir())[1]
    shard.write_bytes(shard.read_bytes()[:-4])
    with pytest.raises(UserError, match=rf"{shard.name} is not a readable Parquet file"):
        dataset_hash(copy)
    (copy / "metadata.json").unlink()
    with pytest.raises(UserError, match=r"metadata\.json can't be read"):
        dataset_hash(copy)


def test_a_data_set_of_the_same_files_with_other_names_or_row_groups(scene_dataset, tmp_path):
    copies = [tmp_path / name for name in ("plain", "renamed", "moved")]
    for copy in copies:
        shutil.copytree(scene_dataset, copy)
        last = sorted((copy / "shards").iterdir())[-1]
        table = pq.read_table(last)
        images = [data + b"\0" for data in table["image"].to_pylist()]
        # One byte less in the first row group, one more in the last: the file is as long as it was.
        if copy.name == "moved":
            images = [images[0][:-1], *images[1:-1], images[-1] + b"\0"]
        at = table.schema.get_field_index("image")
        table = table.set_column(at, table.schema.field(at), pa.array(images, pa.binary()))
        write_table_atomically(table, last, rows_per_group=1)
        if copy.name == "renamed":
            last.rename(last.with_name("part-00007.parquet"))
    sizes = [sorted(path.stat().st_size for path in (copy / "shards").iterdir()) for copy in copies]
    assert sizes[0] == sizes[1] == sizes[2]
    assert len({dataset_hash(copy) for copy in copies}) == 3


def test_a_manifest_says_what_wrote_it(output):
    output.begin()
    content = json.loads((output.out / "manifest.json").read_text())
    assert content["format"] == FORMAT
    assert content["ray_wsss"] == __version__


def test_a_newer_format_is_refused(output):
    output.begin()
    path = output.out / "manifest.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"format": FORMAT + 1, "ray_wsss": "9.0"}))
    words = f"was written by ray-wsss 9.0 in format {FORMAT + 1}; .* reads formats up to {FORMAT}: update"
    for use in (output.begin, lambda: output.begin(overwrite=True)):
        with pytest.raises(NewerFormatError, match=words):
            use()
    with pytest.raises(NewerFormatError, match=words):
        require_finished(output.out, "label")


def test_a_manifest_of_version_0_1_has_no_format(output):
    output.begin()
    path = output.out / "manifest.json"
    content = json.loads(path.read_text())
    del content["format"]
    path.write_text(json.dumps(content))
    assert read_manifest(output.out) == content
    assert output.begin() == "unfinished"


@pytest.mark.parametrize("number", ["1", None, [1], {"major": 1}, True])
def test_a_format_that_is_no_number_is_refused(output, number):
    output.begin()
    path = output.out / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": number}))
    expected = rf"format in {re.escape(str(path))} is .*; expected a number"
    for read in (
        output.begin,
        lambda: read_manifest(output.out),
        lambda: require_finished(output.out, "label"),
    ):
        with pytest.raises(UserError, match=expected):
            read()
