"""The manifests fit the schemas of KubeRay, Kubernetes and Ray, and say the same as each other."""

import copy
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from ray_wsss.version import __version__

KUBERNETES = "1.37"
Config = dict[str, Any]


@pytest.fixture(scope="module")
def load(cluster_files: Path) -> Callable[[str], Config]:
    return lambda name: yaml.safe_load((cluster_files / name).read_text(encoding="utf-8"))


def _check_kuberay(manifest: Config) -> None:
    schema = json.loads((Path(__file__).parent / "data" / "kuberay.json").read_text(encoding="utf-8"))
    jsonschema.validate(manifest, schema)
    cluster = manifest["spec"].get("rayClusterSpec", manifest["spec"])
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {}} | group["template"]
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)


def _groups(manifest: Config) -> dict[str, Config]:
    cluster = manifest["spec"].get("rayClusterSpec", manifest["spec"])
    return {group["groupName"]: group for group in cluster["workerGroupSpecs"]}


@pytest.mark.parametrize("name", ["raycluster.yaml", "rayjob.yaml"])
def test_kubernetes_takes_it(load: Callable[[str], Config], name: str):
    _check_kuberay(load(name))


def _misspell_replicas(cluster: Config) -> None:
    group = cluster["workerGroupSpecs"][0]
    group["maxReplica"] = group.pop("maxReplicas")


def _number_as_start_parameter(cluster: Config) -> None:
    cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] = 0


def _misspell_probe(cluster: Config) -> None:
    container = cluster["headGroupSpec"]["template"]["spec"]["containers"][0]
    container["livenesProbe"] = container.pop("livenessProbe")


@pytest.mark.parametrize("damage", [_misspell_replicas, _number_as_start_parameter, _misspell_probe])
def test_mistakes_are_found(load: Callable[[str], Config], damage: Callable[[Config], None]):
    manifest = copy.deepcopy(load("raycluster.yaml"))
    damage(manifest["spec"])
    with pytest.raises(jsonschema.ValidationError):
        _check_kuberay(manifest)


def test_job_and_cluster_are_specified_alike(load: Callable[[str], Config]):
    assert load("rayjob.yaml")["spec"]["rayClusterSpec"] == load("raycluster.yaml")["spec"]


def test_ray_takes_the_aws_file(load: Callable[[str], Config], ray_files: Path):
    schema = json.loads((ray_files / "autoscaler" / "ray-schema.json").read_text(encoding="utf-8"))
    config = load("aws.yaml")
    jsonschema.validate(config, schema)
    types = config["available_node_types"]
    assert config["head_node_type"] in types
    assert all(t["min_workers"] <= t["max_workers"] for name, t in types.items() if name != "head")
    assert config["max_workers"] >= sum(t.get("max_workers", 0) for t in types.values())


def test_nothing_is_scheduled_on_the_head(load: Callable[[str], Config]):
    assert load("raycluster.yaml")["spec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    aws = load("aws.yaml")
    assert aws["available_node_types"]["head"]["resources"] == {"CPU": 0}
    (start,) = [line for line in aws["head_start_ray_commands"] if "ray start" in line]
    assert "--num-cpus=0" in start
    assert "--dashboard-host=127.0.0.1" in start


def test_groups_are_for_cpus_and_gpus_and_have_bounds(load: Callable[[str], Config]):
    groups = _groups(load("raycluster.yaml"))
    assert set(groups) == {"cpu", "gpu"}
    for name, group in groups.items():
        assert 0 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        (container,) = group["template"]["spec"]["containers"]
        assert ("nvidia.com/gpu" in container["resources"]["limits"]) == (name == "gpu")


def test_tokens_are_on_and_in_no_file(cluster_files: Path, load: Callable[[str], Config]):
    assert load("raycluster.yaml")["spec"]["authOptions"] == {"mode": "token"}
    assert "--env RAY_AUTH_MODE=token" in load("aws.yaml")["docker"]["run_options"]
    assert "RAY_AUTH_MODE=token" in (cluster_files / "Dockerfile").read_text(encoding="utf-8")
    for path in cluster_files.iterdir():
        assert not re.search(r"RAY_AUTH_TOKEN\s*[=:]\s*[^\s$]", path.read_text(encoding="utf-8")), path


def test_health_is_asked_where_ray_answers_without_a_token(
    cluster_files: Path, load: Callable[[str], Config], ray_files: Path
):
    dashboard = (ray_files / "dashboard" / "http_server_head.py").read_text(encoding="utf-8")
    agent = (ray_files / "dashboard" / "http_server_agent.py").read_text(encoding="utf-8")
    constants = (ray_files / "_private" / "ray_constants.py").read_text(encoding="utf-8")
    assert "DEFAULT_DASHBOARD_AGENT_LISTEN_PORT = 52365" in constants
    cluster = load("raycluster.yaml")["spec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        (container,) = group["template"]["spec"]["containers"]
        for probe in (container["readinessProbe"]["httpGet"], container["livenessProbe"]["httpGet"]):
            answers = {"dashboard": dashboard, 52365: agent}[probe["port"]]
            assert f'"{probe["path"]}"' in answers[answers.lower().index("public_exact_paths") :]
    image = (cluster_files / "Dockerfile").read_text(encoding="utf-8")
    assert "http://127.0.0.1:52365/api/local_raylet_healthz" in image


def test_versions_are_those_of_the_tests(root: Path, cluster_files: Path, load: Callable[[str], Config]):
    constraints = (root / ".ci" / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert f"ray=={load('raycluster.yaml')['spec']['rayVersion']}" in constraints
    images = {
        line.split("image:")[1].split("#")[0].strip()
        for path in cluster_files.glob("*.yaml")
        for line in path.read_text(encoding="utf-8").splitlines()
        if "image:" in line
    }
    assert images == {f"ray-wsss:{__version__.rpartition('.')[0]}"}


def test_image_is_built_from_what_is_there_and_does_not_run_as_root(root: Path, cluster_files: Path):
    lines = (cluster_files / "Dockerfile").read_text(encoding="utf-8").splitlines()
    words = [line.split() for line in lines if line and not line.startswith(("#", " "))]
    copied = [source for word in words if word[0] == "COPY" for source in word[1:-1]]
    assert copied
    assert all((root / source).exists() for source in copied)
    assert [word[1] for word in words if word[0] == "USER"][-1] == "1000"
    assert any(word[0] == "HEALTHCHECK" for word in words)


def test_the_job_has_flags_that_its_script_has(root: Path, load: Callable[[str], Config]):
    python, script, *flags = load("rayjob.yaml")["spec"]["entrypoint"].split()
    path = root / Path(script).relative_to("/app")
    shown = subprocess.run(
        [sys.executable, path, "--help"], capture_output=True, text=True, check=True
    ).stdout
    assert python == "python"
    for flag in flags:
        assert not flag.startswith("--") or re.search(rf"{flag}\b", shown), flag
