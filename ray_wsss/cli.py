"""``ray-wsss STAGE ...``: the pipeline from the command line, generated from dataclasses."""

import sys
import traceback
from pathlib import Path
from typing import Annotated, Any, Union

import tyro

from ray_wsss.cluster.session import runs_in_a_copy
from ray_wsss.cluster.space import load_space
from ray_wsss.commands import (
    ComparePrompts,
    Demo,
    Embed,
    Evaluate,
    ExportCoco,
    ExportFolder,
    ExportLabelStudio,
    ExportVoc,
    ExportYolo,
    IngestCoco,
    IngestCsv,
    IngestFolder,
    IngestVoc,
    Label,
    Predict,
    RunAll,
    SegmentEverything,
    Show,
    Sweep,
    TrainClassifier,
    TrainSegmenter,
    WriteReport,
)
from ray_wsss.commands.flags import PATHS
from ray_wsss.config import Recipe
from ray_wsss.errors import UserError
from ray_wsss.overrides import override
from ray_wsss.presets import DEFAULT_PRESET, PRESETS
from ray_wsss.settings_file import apply_settings, load_settings
from ray_wsss.storage import parse_path, why_unreachable

INGEST = {"coco": IngestCoco, "voc": IngestVoc, "folder": IngestFolder, "csv": IngestCsv}
EXPORT = {
    "voc": ExportVoc,
    "coco": ExportCoco,
    "yolo": ExportYolo,
    "label-studio": ExportLabelStudio,
    "folder": ExportFolder,
}

WRITTEN = ("out", "json")
"""Flags that say where results go."""


def _commands(preset: str, recipe: Recipe) -> Any:
    """The type that tyro parses: one subcommand per stage, with the recipe's defaults."""
    missing: Any = tyro.MISSING
    common: dict[str, Any] = {"preset": preset}
    defaults = {
        "train-classifier": TrainClassifier(
            dataset=missing,
            out=missing,
            classifier=recipe.classifier,
            cpm=recipe.cpm,
            sam=recipe.sam,
            **common,
        ),
        "embed": Embed(dataset=missing, out=missing, embed=recipe.embed, sam=recipe.sam, **common),
        "segment-everything": SegmentEverything(
            dataset=missing, out=missing, segments=recipe.segments, sam=recipe.sam, **common
        ),
        "label": Label(
            dataset=missing, classifier=missing, out=missing, label=recipe.label, sam=recipe.sam, **common
        ),
        "train-segmenter": TrainSegmenter(
            dataset=missing, labels=missing, out=missing, segmenter=recipe.segmenter, **common
        ),
        "evaluate": Evaluate(
            dataset=missing,
            label=recipe.label,
            predict=recipe.predict,
            evaluate=recipe.evaluate,
            **common,
        ),
        "predict": Predict(segmenter=missing, images=missing, out=missing, predict=recipe.predict, **common),
        "show": Show(images=missing, classifier=missing, label=recipe.label, sam=recipe.sam, **common),
        "sweep": Sweep(
            space=missing,
            dataset=missing,
            validation=missing,
            out=missing,
            classifier=recipe.classifier,
            cpm=recipe.cpm,
            sam=recipe.sam,
            **common,
        ),
        "compare-prompts": ComparePrompts(
            dataset=missing,
            classifier=missing,
            out=missing,
            label=recipe.label,
            sam=recipe.sam,
            **common,
        ),
        "run-all": RunAll(dataset=missing, out=missing, recipe=recipe, **common),
        "report": WriteReport(),
        "demo": Demo(),
    }
    stages = [Annotated[type(d), tyro.conf.subcommand(name, default=d)] for name, d in defaults.items()]
    return Union[(_group("ingest", INGEST), *stages, _group("export", EXPORT))]


def _group(name: str, commands: dict[str, Any]) -> Any:
    """A subcommand that has subcommands."""
    members = [Annotated[cls, tyro.conf.subcommand(word)] for word, cls in commands.items()]
    return Annotated[Union[tuple(members)], tyro.conf.subcommand(name)]  # noqa: UP007


def _defaults(argv: list[str]) -> tuple[str, Recipe]:
    """The preset, and the defaults of all flags: the preset, on it ``--config``, on that a sweep's space.

    Raises:
        UserError: a file or preset that isn't there, or an unknown key.
    """
    preset, config, space = (_value_of(flag, argv) for flag in ("--preset", "--config", "--space"))
    if preset is not None and preset not in PRESETS:
        raise UserError(f"--preset is {preset or 'missing'}; expected one of {', '.join(PRESETS)}")
    searched = load_space(parse_path(space)) if space is not None and argv[0] == "sweep" else None
    named, settings = load_settings(parse_path(config)) if config is not None else (None, {})
    preset = preset or named or (searched.preset if searched else DEFAULT_PRESET)
    recipe = apply_settings(PRESETS[preset], settings, f"--config {config}")
    return preset, override(recipe, searched.settings) if searched else recipe


def _value_of(flag: str, argv: list[str]) -> str | None:
    """What stands after a flag, where it stands last; empty where nothing does, None without the flag."""
    found = None
    for at, word in enumerate(argv):
        name, _, value = word.partition("=")
        if name == flag:
            found = value or (argv[at + 1] if at + 1 < len(argv) else "")
    return found


def _refuse_paths_outside_the_copy(command: Any) -> None:
    """A submitted job works in a copy of its working directory, which nobody finds again.

    Raises:
        UserError: a relative path that is to be written, or is not in the copy.
    """
    for name, path in vars(command).items():
        if isinstance(path, Path) and not path.is_absolute() and (name in WRITTEN or not path.exists()):
            raise UserError(
                f"--{name} is {path}, and this job runs in a copy of its working directory; expected an "
                "absolute path that all nodes share, or a URI"
            )


def main(argv: list[str] | None = None) -> int:
    """Run a command; the exit status is 0, or 1 after an error told in one sentence."""
    argv = sys.argv[1:] if argv is None else argv
    verbose = "--verbose" in argv
    try:
        commands = _commands(*_defaults(argv))
        command = tyro.cli(commands, prog="ray-wsss", description=__doc__, args=argv, registry=PATHS)
        if runs_in_a_copy():
            _refuse_paths_outside_the_copy(command)
        command.run()
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    except Exception as error:
        if verbose:
            traceback.print_exc()
        # Ray appends advice of its own to what a stage raised.
        message = next(iter(str(error).splitlines()), "")
        if not isinstance(error, UserError | FloatingPointError):
            unexpected = f"unexpected {type(error).__name__}: {message}; --verbose shows where"
            message = why_unreachable(error) or unexpected
        print(f"ray-wsss: {message}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
