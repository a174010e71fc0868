"""The command that runs another one as a job on a cluster."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from ray_wsss.config.resources import parse_selector
from ray_wsss.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Submit:
    """Run a command as a job on a Ray cluster: ray-wsss submit [flags] -- label --dataset ...

    The nodes need the package, or --working-dir a clone of it. The exit status is the job's.
    Ctrl-C leaves the job running.
    """

    command: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Command and flags to run, after --. Paths must be ones that all nodes share, or URIs."""
    address: str | None = None
    """Address of the cluster's job server, such as http://HEAD:8265.
    Without it $RAY_API_SERVER_ADDRESS, else port 8265 of this machine."""
    working_dir: Path | None = None
    """Folder to upload, which the job runs in, such as a clone.
    What its .gitignore and .rayignore list is left out."""
    env: tuple[str, ...] = ()
    """Environment variables of the job, each NAME=VALUE."""
    submission_id: str | None = None
    """Name of the job in the dashboard. Without it Ray makes one."""
    label_selector: str | None = None
    """Labels of the node that runs the command itself, such as market=!spot. Without it the head does."""
    follow: bool = True
    """Print the job's log to its end."""

    def run(self) -> int:
        from ray_wsss.cluster.submit import submit

        for setting in self.env:
            if not setting.partition("=")[1] or setting.startswith("="):
                raise UserError(f"--env is {setting}; expected NAME=VALUE")
        if self.working_dir is not None and not self.working_dir.is_dir():
            raise UserError(f"--working-dir {self.working_dir} is not a folder")
        return submit(
            self.command,
            address=self.address,
            working_dir=self.working_dir,
            env=dict(setting.split("=", 1) for setting in self.env),
            submission_id=self.submission_id,
            labels=parse_selector(self.label_selector, "--label-selector"),
            follow=self.follow,
        )
