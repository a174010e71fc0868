"""Remake the tables of the results page: measure, or go on measuring, and write what was found into the page.

    python jobs/results.py --out results --data DATA --update docs/results.md README.md
    python jobs/results.py --out results --only demo ablation
    python jobs/results.py --out results --only ablation --only-tables --update docs/results.md

All of it takes a night on 2 CPU cores. DATA is a folder of photographs with masks, which the card of the lite
SAM describes (docs/lite_sam.md); without it, measurements on photographs are left out.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from ray_wsss.commands.flags import PARSERS
from ray_wsss.console import logged_to
from ray_wsss.errors import UserError
from ray_wsss.results.measurements import MEASUREMENTS, measure, tables_of, update_pages, with_needed
from ray_wsss.results.setup import Setup


@dataclass(frozen=True, kw_only=True)
class Results:
    """Which figures are remade, and where they go."""

    out: Path
    """Folder with a folder for each measurement. The same command resumes what was interrupted in it."""
    only: tuple[str, ...] = ()
    """Measurements: demo, ablation, prompts, tau, photos, backbones, segmenters, doubt, corrections, views,
    clicks. Without it all; those that others need are made too."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds; the sweep of tau has its own."""
    data: Path | None = None
    """Folder with coco and photos_masks_eval in it, for photos, backbones, segmenters and clicks."""
    only_tables: bool = False
    """Measure nothing: make tables of what is there."""
    update: tuple[Path, ...] = ()
    """Pages whose tables are replaced. Without it the tables are printed."""


def main() -> int:
    """Measure, and print or place the tables."""
    command = tyro.cli(Results, prog="results.py", description=__doc__, registry=PARSERS)
    try:
        with logged_to():
            remake(command)
    except UserError as error:
        print(f"results.py: {error}", file=sys.stderr)
        return 1
    return 0


def remake(command: Results) -> None:
    """Measure, and print or place the tables.

    Raises:
        UserError: an unknown measurement, one without its data or results, or a page without a place for it.
    """
    names = _names(command)
    setup = Setup(out=command.out.absolute(), seeds=command.seeds, data=command.data)
    for name in with_needed(names) if not command.only_tables else ():
        measure(setup, name)
    tables = tables_of(setup, names)
    if not command.update:
        for name, text in tables.items():
            print(f"\n{name}\n\n{text}")
        return
    changed = update_pages(command.update, tables)
    print(f"{len(tables)} tables, changed: {', '.join(map(str, changed)) or 'nothing'}")


def _names(command: Results) -> list[str]:
    lacks_data = command.data is None and not command.only_tables
    for name in command.only:
        if name not in MEASUREMENTS:
            raise UserError(f"--only {name} is no measurement; expected some of {', '.join(MEASUREMENTS)}")
        if MEASUREMENTS[name].needs_data and lacks_data:
            raise UserError(f"--only {name} needs --data, a folder with coco and photos_masks_eval")
    wanted = command.only or tuple(MEASUREMENTS)
    without = [name for name in wanted if MEASUREMENTS[name].needs_data and lacks_data]
    if without:
        print(f"without --data there is no {' and no '.join(without)}")
    return [name for name in MEASUREMENTS if name in wanted and name not in without]


if __name__ == "__main__":
    sys.exit(main())
