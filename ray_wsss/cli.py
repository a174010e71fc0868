"""``ray-wsss COMMAND ...``: the pipeline from the command line."""

import os
import select
import signal
import sys
import traceback
from pathlib import Path

from ray_wsss.commands.job import refuse_relative_paths, runs_in_a_copy
from ray_wsss.commands.registry import parse, print_completion
from ray_wsss.config import Recipe
from ray_wsss.config.overrides import choose, without_other_lengths
from ray_wsss.config.presets import DEFAULT_PRESET, PRESETS
from ray_wsss.config.resources import Cluster
from ray_wsss.config.settings_file import apply_settings, load_settings
from ray_wsss.console import logged_to
from ray_wsss.errors import UserError
from ray_wsss.memory import keep_freed_memory
from ray_wsss.storage import parse_path, why_unreachable
from ray_wsss.version import __version__


def main(argv: list[str] | None = None) -> int:
    """Run a command; the exit status is 0, or 1 after an error told in one sentence."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        try:
            return _run(argv)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        if not _reader_has_gone():
            raise
        # Such as head, which has read what it wanted.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE


def _run(argv: list[str]) -> int:
    if argv[:1] == ["--version"]:
        print(f"ray-wsss {__version__}")
        return 0
    if any(word.startswith("--tyro-print-completion") for word in argv):
        print_completion(argv)
        return 0
    try:
        command = parse(argv, *_defaults(argv))
        if argv[0] == "submit":
            _check_submitted(list(command.command), command.working_dir)
        if runs_in_a_copy():
            refuse_relative_paths(command, Path())
        keep_freed_memory()
        cluster = getattr(command, "cluster", Cluster())
        with logged_to(as_json=cluster.log_format == "json"):
            return command.run() or 0
    except KeyboardInterrupt:
        print("interrupted; the same command resumes the run", file=sys.stderr)
        return 130
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _reader_has_gone():
            raise
        if "--verbose" in argv:
            traceback.print_exc()
        print(f"ray-wsss: {_describe(error)}", file=sys.stderr)
        return 1


def _check_submitted(words: list[str], working_dir: Path | None) -> None:
    """Tell here what is wrong with a command that is to run elsewhere."""
    if not words:
        raise UserError(
            "submit has no command; expected one after --, such as ray-wsss submit -- demo --out DIR"
        )
    refuse_relative_paths(parse(words, *_defaults(words)), working_dir)


def _describe(error: Exception) -> str:
    """One sentence; Ray appends advice of its own to what a stage raised, in further lines."""
    message = next(iter(str(error).splitlines()), "")
    if isinstance(error, UserError | FloatingPointError):
        return message
    unexpected = f"unexpected {type(error).__name__}: {message}; --verbose shows where"
    return why_unreachable(error) or unexpected


def _reader_has_gone() -> bool:
    """True if standard output is a pipe without a reader; a broken connection raises the same error."""
    try:
        descriptor = sys.stdout.fileno()
    except OSError:  # not a file: captured by a test or a notebook
        return False
    poll = select.poll()
    poll.register(descriptor, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def _defaults(argv: list[str]) -> tuple[str, Recipe]:
    """The preset, and the defaults of all flags: the preset's, then those of ``--config``, then a space's.

    Raises:
        UserError: a file or preset that does not exist, or an unknown key.
    """
    preset, config, space = (_value_of(flag, argv) for flag in ("--preset", "--config", "--space"))
    if preset is not None and preset not in PRESETS:
        raise UserError(f"--preset is {preset or 'missing'}; expected one of {', '.join(PRESETS)}")
    searched = None
    if space is not None and argv[0] == "sweep":
        from ray_wsss.cluster.tune.space import load_space

        searched = load_space(parse_path(space))
    named, settings = load_settings(parse_path(config)) if config is not None else (None, {})
    preset = preset or named or (searched.preset if searched else DEFAULT_PRESET)
    recipe = apply_settings(PRESETS[preset], settings, f"--config {config}")
    if searched:
        recipe = choose(recipe, searched.settings)
    return preset, without_other_lengths(recipe, _keys_of(argv))


def _keys_of(argv: list[str]) -> set[str]:
    """Dotted keys of the settings that flags give, such as cpm.tau; other flags are among them."""
    flags = (word[2:].partition("=")[0] for word in argv if word.startswith("--"))
    return {flag.replace("-", "_") for flag in flags}


def _value_of(flag: str, argv: list[str]) -> str | None:
    """The value of a flag, the last one given; empty if it has none, None without the flag."""
    found = None
    for at, word in enumerate(argv):
        name, _, value = word.partition("=")
        if name == flag:
            found = value or (argv[at + 1] if at + 1 < len(argv) else "")
    return found


if __name__ == "__main__":
    sys.exit(main())
