"""All commands by name, in the order of the pipeline, and how their flags are parsed."""

import contextlib
import inspect
import io
from dataclasses import MISSING, dataclass, fields, make_dataclass
from typing import Annotated, Any, Union

import tyro

from ray_wsss.commands.apply import Evaluate, ExportModel, Predict
from ray_wsss.commands.compare_prompts import ComparePrompts
from ray_wsss.commands.datasets.containers import IngestHuggingface, IngestParquet, IngestWebdataset
from ray_wsss.commands.datasets.label_studio import IngestLabelStudio
from ray_wsss.commands.datasets.split import Split
from ray_wsss.commands.demo import Demo
from ray_wsss.commands.export import ExportCoco, ExportFolder, ExportLabelStudio, ExportVoc, ExportYolo
from ray_wsss.commands.flags import PARSERS
from ray_wsss.commands.ingest import IngestCoco, IngestCsv, IngestFolder, IngestVoc, IngestYolo
from ray_wsss.commands.report import WriteReport
from ray_wsss.commands.run_all import RunAll
from ray_wsss.commands.sam_stages import Embed, Label, SegmentEverything
from ray_wsss.commands.show import Show
from ray_wsss.commands.submit import Submit
from ray_wsss.commands.sweep import Sweep
from ray_wsss.commands.train import ExtractFeatures, TrainClassifier, TrainSegmenter
from ray_wsss.config import Recipe
from ray_wsss.config.presets import DEFAULT_PRESET, PRESETS
from ray_wsss.errors import UserError, did_you_mean

PROG = "ray-wsss"


@dataclass(frozen=True)
class Group:
    """A command that has commands."""

    summary: str
    members: dict[str, type]


COMMANDS: dict[str, type | Group] = {
    "ingest": Group(
        "Step 1: read images and their labels into a data set.",
        {
            "folder": IngestFolder,
            "csv": IngestCsv,
            "coco": IngestCoco,
            "voc": IngestVoc,
            "yolo": IngestYolo,
            "label-studio": IngestLabelStudio,
            "webdataset": IngestWebdataset,
            "parquet": IngestParquet,
            "huggingface": IngestHuggingface,
        },
    ),
    "split": Split,
    "embed": Embed,
    "segment-everything": SegmentEverything,
    "extract-features": ExtractFeatures,
    "train-classifier": TrainClassifier,
    "label": Label,
    "train-segmenter": TrainSegmenter,
    "evaluate": Evaluate,
    "predict": Predict,
    "export": Group(
        "Write labels or predictions in another tool's format.",
        {
            "coco": ExportCoco,
            "voc": ExportVoc,
            "yolo": ExportYolo,
            "label-studio": ExportLabelStudio,
            "folder": ExportFolder,
        },
    ),
    "export-model": ExportModel,
    "report": WriteReport,
    "show": Show,
    "run-all": RunAll,
    "sweep": Sweep,
    "compare-prompts": ComparePrompts,
    "demo": Demo,
    "submit": Submit,
}


OVERVIEW = """Image-level labels in, pixel masks out.

The steps are the pipeline, in order; run-all runs them in turn. 'ray-wsss COMMAND --help' lists the
flags of a command, where (paper), (supplement) and (code) say that a value is that of the S2C paper,
of its supplement, or of its released code. 'ray-wsss --version' shows the version.
"""


def summary_of(command: type | Group) -> str:
    """What a command does, in one line."""
    if isinstance(command, Group):
        return command.summary
    return (inspect.getdoc(command) or "").partition("\n")[0]


def parse(argv: list[str], preset: str, recipe: Recipe) -> Any:
    """The command that ``argv`` asks for, with its flags.

    Args:
        preset, recipe: defaults of the settings.

    Raises:
        SystemExit: after printing help, or an error about a flag.
        UserError: there is no such command.
    """
    name, command = PROG, COMMANDS.get(argv[0]) if argv else None
    rest = argv[1:]
    if command is not None:
        name = f"{PROG} {argv[0]}"
    if isinstance(command, Group):
        member = command.members.get(rest[0]) if rest else None
        if member is None:
            return _parse_name(command.members, name, command.summary, rest)
        name, command, rest = f"{name} {rest[0]}", member, rest[1:]
    if command is None:
        return _parse_name(COMMANDS, name, OVERVIEW, argv)
    return tyro.cli(
        command, prog=name, args=rest, default=_default(command, preset, recipe), registry=PARSERS
    )


def print_completion(argv: list[str]) -> None:
    """Let tyro write a shell's completion script, which knows the flags of every command."""
    preset, recipe = DEFAULT_PRESET, PRESETS[DEFAULT_PRESET]

    def choice(name: str, command: type | Group) -> Any:
        if isinstance(command, Group):
            return Annotated[
                _union([choice(word, member) for word, member in command.members.items()]),
                tyro.conf.subcommand(name, description=command.summary),
            ]
        default = _default(command, preset, recipe)
        return Annotated[
            command, tyro.conf.subcommand(name, default=default, description=summary_of(command))
        ]

    everything = _union([choice(name, command) for name, command in COMMANDS.items()])
    script = io.StringIO()
    with contextlib.redirect_stdout(script), contextlib.suppress(SystemExit):
        tyro.cli(everything, prog=PROG, args=argv, registry=PARSERS)
    for line in script.getvalue().splitlines():
        # Shells would offer each line of a help text as a word of its own (tyro 1.0.17).
        print(line.replace(r"\n", " ") if line.startswith("COMPLETION_SPEC") else line)


def _parse_name(commands: dict[str, Any], prog: str, description: str, argv: list[str]) -> Any:
    """Print the list of commands, or refuse a name that is not one of them.

    tyro gets only names and summaries here: describing every flag of every command takes seconds.

    Raises:
        UserError: there is no such command.
    """
    if argv and not argv[0].startswith("-"):
        hint = did_you_mean(argv[0], list(commands), f"expected one of {', '.join(commands)}")
        raise UserError(f"no command '{' '.join([*prog.split()[1:], argv[0]])}'; {hint}")
    stubs = [
        Annotated[make_dataclass(f"Stub{k}", []), tyro.conf.subcommand(name, description=summary_of(command))]
        for k, (name, command) in enumerate(commands.items())
    ]
    return tyro.cli(_union(stubs), prog=prog, description=description, args=argv)


def _union(types: list[Any]) -> Any:
    return Union[tuple(types)]  # noqa: UP007


def _default(command: type, preset: str, recipe: Recipe) -> Any:
    """An instance with the recipe's settings; what the user has to give is missing."""
    values: dict[str, Any] = {}
    for field in fields(command):
        section = getattr(recipe, field.name, None)
        if field.name == "recipe":
            values[field.name] = recipe
        elif field.name == "settings":
            factory: Any = field.default_factory
            values[field.name] = factory(preset=preset)
        elif section is not None and isinstance(section, field.type if isinstance(field.type, type) else ()):
            values[field.name] = section
        elif field.default is MISSING and field.default_factory is MISSING:
            values[field.name] = tyro.MISSING
    return command(**values)
