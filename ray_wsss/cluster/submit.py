"""Submitting commands to a Ray cluster as jobs."""

import asyncio
import os
import shlex
import signal
import sys
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

from ray_wsss.cluster.connect import check_token
from ray_wsss.errors import UserError
from ray_wsss.version import __version__

_SET_UP_S = 600
"""Seconds that the cluster may take to make the job's environment, such as to unpack a working directory."""


def submit(
    words: Sequence[str],
    *,
    address: str | None,
    working_dir: Path | None,
    env: Mapping[str, str],
    submission_id: str | None,
    labels: Mapping[str, str],
    follow: bool,
) -> int:
    """Submit ``ray-wsss WORDS`` to the job server of a cluster.

    Args:
        words: command and flags.
        address: address of the job server; None: ``$RAY_API_SERVER_ADDRESS``, else this machine's.
        working_dir: folder that is uploaded, without what its ``.gitignore`` and ``.rayignore`` list, and
            that the job runs in; None: the nodes have the package.
        env: environment variables of the job.
        submission_id: name of the job; None: Ray makes one.
        labels: conditions on the labels of the node that runs the command itself
            (`config.resources.parse_selector`); empty: the head.
        follow: print the job's log to its end. Ctrl-C then ends the following, not the job.

    Returns:
        Exit status: 0 if the job succeeded or is not followed, else 1.

    Raises:
        UserError: there is no job server, it refuses the token or the job, or a token is missing.
    """
    check_token()
    address = address or os.environ.get("RAY_API_SERVER_ADDRESS") or "http://127.0.0.1:8265"
    runtime_env: dict[str, Any] = {"env_vars": dict(env)} if env else {}
    if working_dir is not None:
        runtime_env["working_dir"] = str(working_dir)
        runtime_env["config"] = {"setup_timeout_seconds": _SET_UP_S}
    try:
        client = JobSubmissionClient(address)
        name = client.submit_job(
            entrypoint=shlex.join(["python", "-m", "ray_wsss", *words]),
            submission_id=submission_id,
            runtime_env=runtime_env,
            metadata=describe(words),
            entrypoint_label_selector=dict(labels) or None,
        )
    except AuthenticationError as error:
        raise UserError(
            f"the job server at {address} refuses the token; expected RAY_AUTH_MODE=token, and the cluster's "
            "token in RAY_AUTH_TOKEN or ~/.ray/auth_token"
        ) from error
    except (RuntimeError, ConnectionError, ValueError, requests.RequestException) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"the job server at {address} does not take the job: {reason}") from error
    print(f"job {name}: {address}/#/jobs/{name}", flush=True)
    if not follow:
        print(f"ray job logs --address {address} --follow {name}")
        return 0
    return _follow(client, name)


def describe(words: Sequence[str]) -> dict[str, str]:
    """Metadata of a job, which the dashboard shows: command, flags that name files, and version."""
    shown = ("--dataset", "--classifier", "--labels", "--out")
    given = dict(pairwise(words)) | dict(word.split("=", 1) for word in words if "=" in word)
    files = {flag[2:]: given[flag] for flag in shown if flag in given}
    return {"command": f"ray-wsss {words[0]}", "ray-wsss": __version__, **files}


def _follow(client: JobSubmissionClient, name: str) -> int:
    async def show() -> None:
        async for lines in client.tail_job_logs(name):
            sys.stdout.write(lines)
            sys.stdout.flush()

    try:
        asyncio.run(show())
    except KeyboardInterrupt:
        print(f"\nthe job goes on; 'ray job stop {name}' ends it", file=sys.stderr)
        return 128 + signal.SIGINT
    info = client.get_job_info(name)
    if info.status == JobStatus.SUCCEEDED:
        return 0
    raise UserError(f"job {name} ended as {info.status.value}: {why_ended(info.message)}")


def why_ended(message: str | None) -> str:
    """Ray's reason why a job ended, in one line, without the log that Ray appends and we have printed."""
    first = next(iter((message or "").splitlines()), "")
    return first.partition(", last available logs")[0] or "no reason given"
