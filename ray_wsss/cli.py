"""``ray-wsss STAGE ...``: the pipeline from the command line, generated from dataclasses."""

import sys
import traceback
from typing import Annotated, Any, Union

import tyro

from ray_wsss.commands import (
    Demo,
    Embed,
    Evaluate,
    IngestCoco,
    IngestCsv,
    IngestFolder,
    IngestVoc,
    Label,
    Predict,
    SegmentEverything,
    TrainClassifier,
    TrainSegmenter,
)
from ray_wsss.errors import UserError
from ray_wsss.presets import PRESETS

INGEST = {"coco": IngestCoco, "voc": IngestVoc, "folder": IngestFolder, "csv": IngestCsv}


def _commands(preset: str) -> Any:
    """The type that tyro parses: one subcommand per stage, with the preset's defaults."""
    recipe = PRESETS[preset]
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
        "demo": Demo(),
    }
    sources = [Annotated[cls, tyro.conf.subcommand(name)] for name, cls in INGEST.items()]
    ingest = Annotated[Union[tuple(sources)], tyro.conf.subcommand("ingest")]  # noqa: UP007
    stages = [Annotated[type(d), tyro.conf.subcommand(name, default=d)] for name, d in defaults.items()]
    return Union[(ingest, *stages)]


def _preset_of(argv: list[str]) -> str:
    """The preset named on the command line: its values are the defaults of everything else there."""
    for at, word in enumerate(argv):
        name, _, value = word.partition("=")
        if name == "--preset":
            value = value or (argv[at + 1] if at + 1 < len(argv) else "")
            if value not in PRESETS:
                raise UserError(f"--preset is {value or 'missing'}; expected one of {', '.join(PRESETS)}")
            return value
    return "voc"


def main(argv: list[str] | None = None) -> int:
    """Run a command; the exit status is 0, or 1 after an error told in one sentence."""
    argv = sys.argv[1:] if argv is None else argv
    verbose = "--verbose" in argv
    try:
        command = tyro.cli(_commands(_preset_of(argv)), prog="ray-wsss", description=__doc__, args=argv)
        command.run()
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    except Exception as error:
        if verbose:
            traceback.print_exc()
        # Ray appends advice of its own to what a stage raised.
        message = next(iter(str(error).splitlines()), "")
        told = isinstance(error, UserError | FloatingPointError)
        what = message if told else f"unexpected {type(error).__name__}: {message}; --verbose shows where"
        print(f"ray-wsss: {what}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
