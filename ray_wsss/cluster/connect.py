"""Connecting to Ray: to a cluster if there is one, else to a new Ray on this machine."""

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pyarrow.fs
import ray
from ray.data import DataContext
from ray.exceptions import RayError

from ray_wsss.errors import UserError
from ray_wsss.storage import filesystem_of, is_remote


@contextmanager
def ray_session(address: str | None = None, *, verbose: bool = False) -> Iterator[None]:
    """Connect to Ray for the length of a command. A connection that exists already is used and left open.

    Args:
        address: address of a cluster (``auto``, ``host:port``, ``ray://host:port``). None: ``$RAY_ADDRESS``
            or the job's cluster, else a new Ray on this machine.
        verbose: show Ray's log.

    Raises:
        UserError: there is no cluster at ``address``, or Ray does not start on this machine.
    """
    started = not ray.is_initialized()
    if started:
        _start(address or os.environ.get("RAY_ADDRESS") or "local", verbose)
    with warnings.catch_warnings():
        _set_loudness(verbose)
        try:
            yield
        finally:
            if started:
                ray.shutdown()


def check_token() -> None:
    """Raise UserError if a cluster's token is asked for and none is there, for which Ray waits a minute."""
    if os.environ.get("RAY_AUTH_MODE", "").lower() != "token" or os.environ.get("RAY_AUTH_TOKEN"):
        return
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    if not path.is_file():
        raise UserError(
            f"RAY_AUTH_MODE is token, but there is no token: neither in RAY_AUTH_TOKEN nor in {path}; "
            "'ray get-auth-token' prints it on a machine that has it"
        )


def _start(address: str, verbose: bool) -> None:
    local = address == "local"
    if not local:
        check_token()
    # Without this variable, ray.init() of Ray 2.60 writes a token file (ray-project/ray#64755). Clusters that
    # this user starts later then ask for the token, which the job CLI does not send.
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    # The default of Ray 2.60. Older versions hide all GPUs from processes without a GPU, and warn about it
    # (ray-project/ray#54868).
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if local:
        # Ray's processes would have the lowest priority but four (15), and starve beside any other program.
        os.environ.setdefault("RAY_worker_niceness", "0")
        # Seconds between Ray Train's checks of its workers (2 in Ray 2.60). On one machine a check is cheap,
        # and more frequent ones end a run sooner.
        os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    try:
        with nullcontext() if verbose else _quiet_core():
            ray.init(
                address=address,
                logging_level=logging.INFO if verbose else logging.CRITICAL,
                # The first worker's lines come through a file instead, without Ray's lines
                # (`cluster.workers`).
                log_to_driver=verbose,
                include_dashboard=None if verbose else False if local else None,
                # Ray Data's operators need a few CPU slots on a small machine too; a slot is not a thread.
                num_cpus=max(4, os.cpu_count() or 1) if local else None,
            )
    except Exception as error:  # Ray raises no narrower one if it takes too long to start
        what = "Ray does not start on this machine" if local else f"there is no Ray cluster at {address}"
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{what}: {reason}") from error


@contextmanager
def _quiet_core() -> Iterator[None]:
    """Start Ray's C++ core without its log, which Ray 2.60 writes to stderr without Python's logging.

    A variable sets the level of that log, but Ray announces it with a line of its own. The streams are
    therefore closed meanwhile.
    """
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    sys.stdout.flush()
    sys.stderr.flush()
    saved = {stream: os.dup(stream) for stream in (1, 2)}
    with open(os.devnull, "wb") as nowhere:  # noqa: PTH123
        for stream in saved:
            os.dup2(nowhere.fileno(), stream)
    try:
        yield
    finally:
        for stream, copy in saved.items():
            os.dup2(copy, stream)
            os.close(copy)


def _set_loudness(verbose: bool) -> None:
    """Show or hide Ray's warnings, log and progress bars in this process; failures are raised anyway."""
    if not verbose:
        warnings.filterwarnings("ignore", module=r"ray(\.|$)")
    for name in ("ray", "ray.data", "ray.train", "ray.tune"):
        logging.getLogger(name).setLevel(logging.INFO if verbose else logging.CRITICAL + 1)
    context = DataContext.get_current()
    context.enable_progress_bars = verbose or sys.stderr.isatty()
    context.print_on_execution_start = verbose
    # Otherwise Ray 2.60 passes on only the text of a stage's exception.
    context.raise_original_map_exception = True


def storage_of(folder: Path) -> dict[str, Any]:
    """Arguments with which Ray Train and Ray Tune keep their files in ``folder``, an absolute path."""
    if not is_remote(folder):
        return {"storage_path": str(folder)}
    # Ray would use Arrow's client; this is the project's own, with its settings.
    handler = pyarrow.fs.FSSpecHandler(filesystem_of(folder))
    inside = str(folder).partition("://")[2]
    return {"storage_path": inside, "storage_filesystem": pyarrow.fs.PyFileSystem(handler)}


@contextmanager
def own_errors() -> Iterator[None]:
    """Raise the exception of a task itself, without the wrapper that Ray puts around it."""
    try:
        yield
    except Exception as error:
        cause = unwrap(error)
        if cause is error:
            raise
        raise cause from error


def unwrap(error: BaseException) -> BaseException:
    """The exception raised inside a Ray task, or ``error`` itself if it does not come from one.

    Ray 2.60 wraps the exception several times, linked by the attribute ``cause`` or by ``__cause__``.
    """
    seen, link = error, error
    for _ in range(20):
        cause = getattr(link, "cause", None)
        link = cause if isinstance(cause, BaseException) else link.__cause__
        if link is None:
            return seen
        if isinstance(seen, RayError) or isinstance(link, UserError | FloatingPointError):
            seen = link
    return seen
