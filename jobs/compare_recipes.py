"""Compare variants of a recipe on your own images, trained with several seeds and scored on held-out images.

    python jobs/compare_recipes.py --dataset runs/train --held-out runs/val --variants cpm.json --out compared

where cpm.json is

    {"without CPM": {"cpm.enabled": false}, "with CPM": {}}

It works in one process, without Ray. Running it again resumes it.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console

from ray_wsss.benchmark.recipes import compare_recipes, read_variants, recipes_table
from ray_wsss.commands.flags import PARSERS
from ray_wsss.config.presets import DEFAULT_PRESET, PRESETS, PresetName
from ray_wsss.console import logged_to
from ray_wsss.errors import UserError


@dataclass(frozen=True, kw_only=True)
class CompareRecipes:
    """Train and score all variants."""

    dataset: Path
    """Data set to train on."""
    held_out: Path
    """Data set with masks, to score on."""
    variants: Path
    """JSON file: the settings of each variant that differ from the preset's, by dotted key."""
    out: Path
    """Folder for all outputs; the figures are in its file compare_recipes.json."""
    preset: PresetName = DEFAULT_PRESET
    """Settings that all variants share."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of initial weights and order of images."""
    segmenter: bool = False
    """Label the images to train on and train a segmenter on the labels, too."""


def main() -> int:
    """Compare the variants and print the table."""
    command = tyro.cli(CompareRecipes, prog="compare_recipes.py", description=__doc__, registry=PARSERS)
    try:
        with logged_to():
            results = compare_recipes(
                PRESETS[command.preset],
                read_variants(command.variants),
                dataset=command.dataset,
                held_out=command.held_out,
                out=command.out,
                seeds=command.seeds,
                segmenter=command.segmenter,
            )
    except UserError as error:
        print(f"compare_recipes.py: {error}", file=sys.stderr)
        return 1
    Console().print(recipes_table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
