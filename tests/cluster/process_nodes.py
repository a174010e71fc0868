"""A node provider for Ray's autoscaler whose nodes are processes of this machine."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from threading import RLock
from typing import Any

from ray.autoscaler.node_provider import NodeProvider
from ray.autoscaler.tags import (
    NODE_KIND_HEAD,
    STATUS_UP_TO_DATE,
    TAG_RAY_NODE_KIND,
    TAG_RAY_NODE_NAME,
    TAG_RAY_NODE_STATUS,
    TAG_RAY_USER_NODE_TYPE,
)

HEAD_ID = "f" * 51 + "00000"
HEAD_TYPE = "head"


def name_node(node: str, kind: str) -> dict[str, str]:
    """Environment of a raylet: its id, and what version 2 of the autoscaler knows it by."""
    return {
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": node,
        "RAY_CLOUD_INSTANCE_ID": node,
        "RAY_NODE_TYPE_NAME": kind,
    }


class ProcessNodes(NodeProvider):
    """Starts a raylet for each node that the autoscaler asks for, and ends it when it asks for that.

    Nodes go by Ray's ids instead of IP addresses, which all of them share (``use_node_id_as_ip``).
    """

    def __init__(self, provider_config: dict[str, Any], cluster_name: str) -> None:
        super().__init__(provider_config, cluster_name)
        self.folder = Path(provider_config["folder"])
        self.address: str = provider_config["address"]
        self.lock = RLock()
        self.started = 0
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        head = {TAG_RAY_NODE_KIND: NODE_KIND_HEAD, TAG_RAY_USER_NODE_TYPE: HEAD_TYPE}
        self.tags = {HEAD_ID: head | {TAG_RAY_NODE_NAME: HEAD_ID, TAG_RAY_NODE_STATUS: STATUS_UP_TO_DATE}}

    def non_terminated_nodes(self, tag_filters: dict[str, str]) -> list[str]:
        with self.lock:
            for node, process in list(self.processes.items()):
                if process.poll() is not None:  # lost, as a spot node is
                    del self.processes[node], self.tags[node]
            return [node for node, tags in self.tags.items() if tag_filters.items() <= tags.items()]

    def is_running(self, node_id: str) -> bool:
        return node_id in self.tags

    def is_terminated(self, node_id: str) -> bool:
        return node_id not in self.tags

    def node_tags(self, node_id: str) -> dict[str, str]:
        return self.tags[node_id]

    def set_node_tags(self, node_id: str, tags: dict[str, str]) -> None:
        self.tags[node_id] |= tags

    def internal_ip(self, node_id: str) -> str:
        return node_id

    external_ip = internal_ip

    def create_node_with_resources_and_labels(
        self,
        node_config: dict[str, Any],
        tags: dict[str, str],
        count: int,
        resources: dict[str, float],
        labels: dict[str, str],
    ) -> None:
        for _ in range(count):
            with self.lock:
                self.started += 1
                node = "f" * 51 + f"{self.started:05d}"
                self.tags[node] = tags | {TAG_RAY_NODE_NAME: node, TAG_RAY_NODE_STATUS: STATUS_UP_TO_DATE}
                self.processes[node] = self._start(node, tags[TAG_RAY_USER_NODE_TYPE], resources)

    def _start(self, node: str, kind: str, resources: dict[str, float]) -> subprocess.Popen[bytes]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        words = ["start", "--block", "--disable-usage-stats", "--include-log-monitor", "false"]
        words += ["--address", self.address, "--temp-dir", str(self.folder / f"node_{self.started}")]
        words += ["--num-cpus", str(int(resources["CPU"])), "--num-gpus", str(int(resources.get("GPU", 0)))]
        words += ["--memory", str(int(resources["memory"]))]
        words += ["--object-store-memory", str(200 * 2**20), "--dashboard-agent-listen-port", str(port)]
        with (self.folder / f"node_{self.started}.log").open("w") as log:
            return subprocess.Popen(
                [str(Path(sys.executable).parent / "ray"), *words],
                env=os.environ | name_node(node, kind),
                stdout=log,
                stderr=log,
            )

    def terminate_node(self, node_id: str) -> None:
        with self.lock:
            process = self.processes.pop(node_id)
            del self.tags[node_id]
        process.send_signal(signal.SIGTERM)

    @staticmethod
    def bootstrap_config(cluster_config: dict[str, Any]) -> dict[str, Any]:
        return cluster_config
