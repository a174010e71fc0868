"""A cluster whose autoscaler starts nodes when they are asked for, and ends them when they are idle."""

import json
import os
import signal
from dataclasses import dataclass
from pathlib import Path

from process_nodes import HEAD_ID, HEAD_TYPE, name_node
from real_cluster import RealCluster

NODE_CPUS = 2
NODE_MEMORY = 2 * 2**30
_NOTHING = (
    "initialization_commands setup_commands head_setup_commands worker_setup_commands "
    "head_start_ray_commands worker_start_ray_commands cluster_synced_files rsync_exclude rsync_filter"
)


@dataclass
class GrowingCluster(RealCluster):
    """A head without CPUs, and up to four nodes of two CPUs each."""

    autoscaler: int = 1
    """Version of Ray's autoscaler."""
    idle_s: float = 30
    """Seconds after which an idle node is ended."""

    @property
    def env(self) -> dict[str, str]:
        own = {
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            "PYTHONPATH": str(Path(__file__).parent),  # where the autoscaler finds `process_nodes`
        }
        if self.autoscaler == 2:
            own |= {"RAY_enable_autoscaler_v2": "1"}
        return super().env | own | name_node(HEAD_ID, HEAD_TYPE)

    def start(self, *flags: str) -> None:
        config = {
            "cluster_name": "growing",
            "max_workers": 4,
            "idle_timeout_minutes": self.idle_s / 60,
            "provider": {
                "type": "external",
                "module": "process_nodes.ProcessNodes",
                "folder": str(self.folder),
                "address": f"127.0.0.1:{self.gcs_port}",
                "head_node_id": HEAD_ID,
                "use_node_id_as_ip": True,
                "disable_node_updaters": True,
                "disable_launch_config_check": True,
            },
            "auth": {},
            "file_mounts": {},
            "file_mounts_sync_continuously": False,
            "upscaling_speed": 1.0,
            "head_node_type": HEAD_TYPE,
            "available_node_types": {
                HEAD_TYPE: {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
                # With the memory, as providers state it: else no node comes for an actor that asks for some.
                "two_cpus": {
                    "resources": {"CPU": NODE_CPUS, "memory": NODE_MEMORY},
                    "node_config": {},
                    "max_workers": 4,
                },
            },
            **{name: [] for name in _NOTHING.split()},
        }
        path = self.folder / "cluster.json"
        path.write_text(json.dumps(config))
        super().start(*flags, "--autoscaling-config", str(path))

    def stop(self) -> None:
        super().stop()
        for process in Path("/proc").glob("[0-9]*"):  # nodes whose autoscaler has ended before them
            self._end(process)

    def _end(self, process: Path) -> None:
        try:
            if str(self.folder) in (process / "cmdline").read_text(errors="replace"):
                os.kill(int(process.name), signal.SIGKILL)
        except OSError:  # gone meanwhile
            pass
