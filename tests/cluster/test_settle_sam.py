"""One SAM and one precision per output, whatever GPUs the machine of the driver and the workers have."""

import json
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

from ray_wsss.cluster import settle_sam as settling
from ray_wsss.cluster.settle_sam import settle_sam
from ray_wsss.config.overrides import override
from ray_wsss.config.presets import PRESETS
from ray_wsss.config.resources import Cluster, Resources, Workers
from ray_wsss.errors import UserError
from ray_wsss.models.promptable.precision import Capability, precision_on
from ray_wsss.runs.dependencies import sam_settings
from ray_wsss.runs.manifest import Output

T4, A100 = (7, 5), (8, 0)
AUTO = override(PRESETS["demo"], {"sam.precision": "auto"})
UNNAMED = override(AUTO, {"sam.name": "auto", "sam.precision": "fp32"})
ON_GPUS = {"processes": Resources(gpus_per_actor=0.5), "cluster": Cluster()}


@pytest.fixture
def gpus(monkeypatch):
    """Sets the capabilities of the cluster's GPUs; returns the list of questions that were asked."""
    asked = []

    def do(*found: Capability) -> list:
        monkeypatch.setattr(settling, "ask_gpus", lambda share: asked.append(share) or list(found))
        monkeypatch.setattr(settling, "ray_session", lambda *_, **__: nullcontext())
        monkeypatch.setattr(settling, "room_for", lambda **_: nullcontext())
        return asked

    return do


def begin(out: Path, **options) -> str:
    """Begins or resumes a run on GPUs; returns its precision."""
    recipe = settle_sam(AUTO, out, "embed", **ON_GPUS, **options)
    Output(out, "embed", sam_settings(recipe, "cuda")).begin(overwrite=options.get("overwrite"))
    return recipe.sam.precision


@pytest.mark.parametrize(
    ("found", "expected"), [([A100], "bf16"), ([T4], "fp32"), ([A100, T4], "fp32"), ([A100, (9, 0)], "bf16")]
)
def test_the_oldest_gpu_decides(gpus, found, expected, tmp_path):
    gpus(*found)
    assert begin(tmp_path / "out") == expected


@pytest.mark.parametrize(("first", "then"), [(A100, T4), (T4, A100)])
def test_a_run_that_began_keeps_its_precision(gpus, first, then, tmp_path):
    """It resumes on other GPUs, and none is asked: the cluster may have none by then."""
    gpus(first)
    began = begin(tmp_path)
    asked = gpus(then)
    del asked[:]
    assert begin(tmp_path) == began
    assert not asked
    assert begin(tmp_path, overwrite=True) == precision_on(AUTO.sam, "cuda", then) != began


def test_a_run_of_version_0_1_resumes(gpus, tmp_path):
    """It noted bf16 for every GPU, also for those without bf16."""
    Output(tmp_path, "embed", sam_settings(AUTO) | {"sam.precision": "bf16"}).begin()
    gpus(T4)
    assert begin(tmp_path) == "bf16"


def test_what_was_chosen_or_does_not_matter_asks_nobody(gpus, tmp_path):
    asked = gpus(T4)
    chosen = override(AUTO, {"sam.precision": "fp16"})
    assert settle_sam(chosen, tmp_path, "embed", **ON_GPUS).sam.precision == "fp16"
    assert settle_sam(AUTO, tmp_path, "label", **ON_GPUS, encodes=False) == AUTO
    on_cpus = settle_sam(AUTO, tmp_path, "embed", processes=Resources(), cluster=Cluster())
    assert on_cpus.sam.precision == precision_on(AUTO.sam, "cpu")
    assert not asked


def test_training_in_this_process_asks_its_own_gpu(monkeypatch, tmp_path):
    local = {"processes": Workers(workers=0, gpus_per_worker=1), "cluster": Cluster()}
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match="this process is to use a GPU, but torch finds none"):
        settle_sam(AUTO, tmp_path, "train-classifier", **local)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda: T4)
    assert settle_sam(AUTO, tmp_path, "train-classifier", **local).sam.precision == "fp32"


def begun_with(out: Path, stage: str, **settings) -> Path:
    """An output whose manifest notes these settings of SAM."""
    output = Output(out, stage, {f"sam.{key}": value for key, value in settings.items()})
    output.begin()
    output.finish()
    return out


def name_of(out: Path, processes: Resources | Workers, **options) -> str:
    recipe = settle_sam(UNNAMED, out, "label", processes=processes, cluster=Cluster(), **options)
    return recipe.sam.name


@pytest.mark.parametrize(
    ("processes", "name"),
    [
        (Resources(), "lite"),
        (Resources(gpus_per_actor=0.5), "vit_h"),
        (Workers(workers=2), "lite"),
        (Workers(gpus_per_worker=1), "vit_h"),
    ],
)
def test_the_hardware_decides_which_sam(processes, name, tmp_path, caplog):
    caplog.set_level("INFO", logger="ray_wsss")
    assert name_of(tmp_path, processes) == name
    device = "CPU" if name == "lite" else "GPU"
    assert [record.getMessage() for record in caplog.records] == [f"sam.name is {name} (auto, on a {device})"]


def test_what_was_begun_before_or_elsewhere_keeps_its_sam(tmp_path, caplog):
    """Also what versions made whose default was vit_h, on whatever hardware."""
    caplog.set_level("INFO", logger="ray_wsss")
    begun = begun_with(tmp_path / "begun", "label", name="vit_h")
    assert name_of(begun, Resources()) == "vit_h"
    assert f"sam.name is vit_h (as {begun} was begun)" in caplog.messages
    assert name_of(begun, Resources(), overwrite=True) == "lite"
    embeddings = begun_with(tmp_path / "embeddings", "embed", name="tiny")
    for out in (begun, tmp_path / "new"):
        assert name_of(out, Resources(), encodes=False, embeddings=embeddings) == "tiny"
    assert f"sam.name is tiny (as in {embeddings})" in caplog.messages


def test_a_named_sam_stays_and_an_unused_one_is_not_settled(tmp_path, caplog):
    begun = begun_with(tmp_path / "begun", "embed", name="vit_h")
    run = {"processes": Resources(gpus_per_actor=1), "cluster": Cluster()}
    assert settle_sam(PRESETS["demo"], begun, "embed", **run).sam.name == "tiny"
    assert name_of(tmp_path, Resources(), encodes=False) == "auto"
    assert not caplog.records


ASK = """
import json, ray
from ray.cluster_utils import Cluster
from ray_wsss.cluster import settle_sam
from ray_wsss.config.resources import Share
from ray_wsss.errors import UserError

def of_node():
    kinds = ray.get_runtime_context().get_assigned_resources()
    return (7, 5) if "accelerator_type:T4" in kinds else (8, 0)

settle_sam._capability = of_node
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
for kind, gpus in (("T4", 1), ("A100", 4), ("A100", 4)):
    cluster.add_node(num_cpus=1, num_gpus=gpus, resources={f"accelerator_type:{kind}": 1})
ray.init(cluster.address, logging_level="ERROR", log_to_driver=False)
found = {str(gpus): settle_sam.ask_gpus(Share(cpus=1, gpus=gpus)) for gpus in (0.5, 1, 2)}
try:
    settle_sam.ask_gpus(Share(cpus=1, gpus=8))
except UserError as error:
    found["8"] = str(error)
print(json.dumps(found))
"""


@pytest.mark.cluster
def test_one_gpu_of_each_type_is_asked():
    """On nodes with GPUs on paper; a type on which no process fits does not count."""
    done = subprocess.run([sys.executable, "-c", ASK], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    told = found.pop("8")
    assert {gpus: sorted(kinds) for gpus, kinds in found.items()} == {
        "0.5": [[7, 5], [8, 0]],
        "1": [[7, 5], [8, 0]],
        "2": [[8, 0]],
    }
    assert "8 GPUs" in told
