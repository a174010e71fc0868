"""All measurements of the results page by name, and the pages that their tables stand on."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill

from ray_wsss.errors import UserError
from ray_wsss.results import of_labels, of_photos, of_scenes
from ray_wsss.results.origin import origin_of
from ray_wsss.results.page import names_of, with_tables
from ray_wsss.results.setup import Measurement, Setup
from ray_wsss.runs.history import recorded_run
from ray_wsss.storage import make_folder

log = logging.getLogger(__name__)

_WIDTH = 140
"""Characters of a line of the pages."""
_JOB = "python jobs/results.py --out results"

MEASUREMENTS = {
    "demo": Measurement(
        command="ray-wsss demo --seed S",
        run=of_scenes.run_demos,
        read=of_scenes.read_demos,
        tables=("demo", "demo_means", "demo_seconds"),
    ),
    "ablation": Measurement(
        command="python jobs/ablation.py --seeds 0 1 2",
        run=of_scenes.run_ablations,
        read=of_scenes.read_ablations,
        tables=("ablation",),
    ),
    "prompts": Measurement(
        run=of_scenes.run_prompts,
        read=of_scenes.read_prompts,
        tables=("prompts",),
        needs=("demo",),
    ),
    "tau": Measurement(
        run=of_scenes.run_tau,
        read=of_scenes.read_tau,
        tables=("tau",),
        needs=("demo",),
    ),
    "photos": Measurement(
        run=of_photos.run_photos,
        read=of_photos.read_photos,
        tables=("photos",),
        needs_data=True,
    ),
    "backbones": Measurement(
        run=of_photos.run_backbones,
        read=of_photos.read_backbones,
        tables=("backbones",),
        needs_data=True,
    ),
    "segmenters": Measurement(
        run=of_photos.run_segmenters,
        read=of_photos.read_segmenters,
        tables=("segmenters",),
        needs=("backbones",),
        needs_data=True,
    ),
    "doubt": Measurement(
        run=of_labels.run_doubt,
        read=of_labels.read_doubt,
        tables=("doubt",),
        needs=("demo",),
    ),
    "corrections": Measurement(
        run=of_labels.run_corrections,
        read=of_labels.read_corrections,
        tables=("corrections",),
        needs=("demo",),
    ),
    "views": Measurement(
        run=of_scenes.run_views,
        read=of_scenes.read_views,
        tables=("views",),
        needs=("demo",),
    ),
    "clicks": Measurement(
        run=of_photos.run_clicks,
        read=of_photos.read_clicks,
        tables=("clicks",),
        needs_data=True,
    ),
}
"""In the order of the page; each stands after those that it needs."""


def _command_of(name: str) -> str:
    """Command that does a measurement, as the page shows it."""
    measurement = MEASUREMENTS[name]
    return measurement.command or f"{_JOB} --only {name}{' --data DATA' * measurement.needs_data}"


def with_needed(names: Sequence[str]) -> list[str]:
    """These measurements and those that they need, in the order of `MEASUREMENTS`."""
    wanted = set(names) | {other for name in names for other in MEASUREMENTS[name].needs}
    return [name for name in MEASUREMENTS if name in wanted]


def measure(setup: Setup, name: str) -> None:
    """Do a measurement, or what is missing of it, and record when and where (``runs.json`` in its folder)."""
    if _read(setup, name) is not None:
        log.info("%s: already measured", name)
        return
    log.info("%s:", name)
    folder = setup.out / name
    make_folder(folder)
    with recorded_run(folder):
        MEASUREMENTS[name].run(setup)


def tables_of(setup: Setup, names: Sequence[str]) -> dict[str, str]:
    """Tables of measurements by name, the first of each with the line that says where its figures come from.

    Raises:
        UserError: a measurement has left nothing, or not all of its seeds.
    """
    found: dict[str, str] = {}
    for name in names:
        tables, measurement = _read(setup, name), MEASUREMENTS[name]
        if tables is None:
            seeds = ", ".join(map(str, setup.seeds))
            raise UserError(
                f"{setup.out / name} lacks figures of seeds {seeds}; expected a measurement that is done"
            )
        first = measurement.tables[0]
        found |= tables
        origin = fill(origin_of(setup.out / name, _command_of(name)), _WIDTH, break_on_hyphens=False)
        found[first] = f"{tables[first]}\n\n{origin}"
    return found


def _read(setup: Setup, name: str) -> Mapping[str, str] | None:
    """Tables of a measurement; None if it lacks some of the figures."""
    try:
        return MEASUREMENTS[name].read(setup)
    except (OSError, LookupError, ValueError):
        return None


def update_pages(pages: Sequence[Path], tables: dict[str, str]) -> list[Path]:
    """Write tables into the pages that have their markers; the pages that changed.

    Raises:
        UserError: a page can't be read, or no page has the place of a table.
    """
    texts: dict[Path, str] = {}
    for page in pages:
        try:
            texts[page] = page.read_text(encoding="utf-8")
        except OSError as error:
            raise UserError(f"--update {page} can't be read ({error.strerror})") from None
    placed = {name for text in texts.values() for name in names_of(text)}
    if missing := [name for name in tables if name not in placed]:
        shown = ", ".join(str(page) for page in pages)
        raise UserError(f"{shown} has no place for table {missing[0]}; expected <!-- table {missing[0]} -->")
    changed = []
    for page, text in texts.items():
        if (new := with_tables(text, tables)) != text:
            page.write_text(new, encoding="utf-8")
            changed.append(page)
    return changed
