"""The report page: one HTML file that holds everything and loads nothing over a network.

Its Content-Security-Policy allows only the page's own style and script, by their hashes; the browser runs and
fetches nothing else. Names from the data set reach the page as escaped text, or as JSON in which no character
can close the element around it.
"""

import base64
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from ray_wsss.report.charts import HEIGHT, WIDTH, Histogram, LineChart
from ray_wsss.report.gallery import GalleryImage
from ray_wsss.report.pictures import report_palette

PICTURES_PER_BLOCK = 12
"""Images whose pictures the page's script parses together; they fill about one screen."""
LONG_TABLE = 100
"""Rows above which a table by class scrolls, worst class first, and has no bars: of 1,000 classes these would
take a megabyte."""


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One number at the top of the page."""

    value: str
    label: str
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class StageRow:
    """One stage, as text."""

    name: str
    path: str
    state: str
    version: str
    """Version of ray_wsss that wrote the folder."""
    seeds: str
    began: str
    took: str
    runs: str
    """Number of runs, if there were several or any was cut off; else empty."""
    where: Sequence[str]
    """Lines about machine, cluster and resources."""
    versions: Mapping[str, str]
    """Version by package in the last run, of ray-wsss with its commit; empty without records of runs."""
    settings: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class PhaseRow:
    """Time of one phase of a stage's work."""

    name: str
    seconds: float
    share: float | None
    """Share of the actors' time, in [0, 1]; None for decoding, which runs outside the actors."""
    images_per_s: float
    """Images per second of one actor in this phase."""


@dataclass(frozen=True, kw_only=True)
class PipelineRow:
    """Counts and times of a stage that processes images."""

    name: str
    counts: Mapping[str, int]
    speed: str
    phases: Sequence[PhaseRow]


@dataclass(frozen=True, kw_only=True)
class Training:
    """The curves of a training run."""

    name: str
    note: str
    charts: Sequence[LineChart]


@dataclass(frozen=True, kw_only=True)
class Column:
    """One measure in a `MetricsTable`."""

    title: str
    note: str
    miou: float
    """Mean IoU in [0, 1], background included."""
    images: int


@dataclass(frozen=True, kw_only=True)
class MetricsTable:
    """IoU by class and measure."""

    title: str
    note: str
    columns: Sequence[Column]
    rows: Sequence[tuple[str, Sequence[float | None]]]
    """(class, IoU in [0, 1] by column, None if the class never occurs)."""


@dataclass(frozen=True, kw_only=True)
class ConfusedPair:
    """Pixels of one class that were taken for another."""

    truth: str
    prediction: str
    pixels: int
    share: float
    """Share of the true class's pixels, in [0, 1]."""


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """The most confused pairs of classes."""

    title: str
    pairs: Sequence[ConfusedPair]
    wrong: float
    """Share of wrong pixels in all pixels, in [0, 1]."""


@dataclass(frozen=True, kw_only=True)
class ClassRow:
    """SAM's masks of one class in all images."""

    name: str
    masks: int
    score: float
    """Mean score of the masks, in [0, 1]."""


@dataclass(frozen=True, kw_only=True)
class FailedImage:
    """An image that a stage failed on."""

    image: str
    stage: str
    reason: str


@dataclass(kw_only=True)
class Report:
    """Content of the page except the gallery's images."""

    title: str
    source: str
    made: str
    tiles: list[Tile] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    stages: list[StageRow] = field(default_factory=list)
    pipeline: list[PipelineRow] = field(default_factory=list)
    trainings: list[Training] = field(default_factory=list)
    tables: list[MetricsTable] = field(default_factory=list)
    confusions: list[Confusion] = field(default_factory=list)
    histograms: list[Histogram] = field(default_factory=list)
    classes: list[ClassRow] = field(default_factory=list)
    failed: list[FailedImage] = field(default_factory=list)
    failed_in_all: int = 0
    gallery_note: str = ""
    """Line above the gallery that names its images, labels and data set; empty without a gallery."""
    class_names: Sequence[str] = ()
    review_key: str = ""
    """Key under which a browser keeps verdicts, one for all reports on these labels; empty without any."""


def render_report(report: Report, images: Iterator[GalleryImage], side_px: int) -> Iterator[str]:
    """Render the page in pieces; only a few images are in memory at a time.

    Args:
        images: read while the page is rendered. Until it ends, it may still change ``report.failed``.
        side_px: long side of the gallery's pictures, in pixels.
    """
    palette = report_palette(len(report.class_names))
    facts: list[dict[str, Any]] = []
    layers: dict[str, None] = {}

    def blocks() -> Iterator[list[dict[str, str]]]:
        block: list[dict[str, str]] = []
        for image in images:
            facts.append(image.facts())
            block.append(image.pictures(palette, side_px))
            layers.update(dict.fromkeys([*block[-1], *(["points"] if image.masks else [])]))
            if len(block) == PICTURES_PER_BLOCK:
                yield block
                block = []
        if block:
            yield block

    environment = Environment(
        loader=PackageLoader("ray_wsss.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = _percent
    style, script = _asset("report.css"), _asset("theme.js") + _asset("review.js") + _asset("gallery.js")
    gallery = {
        "facts": facts,
        "layers": layers,
        "classNames": list(report.class_names),
        "colours": [f"rgb({r}, {g}, {b})" for r, g, b in palette[1:].tolist()],
        "perBlock": PICTURES_PER_BLOCK,
        "reviewKey": report.review_key,
    }
    return environment.get_template("report.html").generate(
        report=report,
        blocks=blocks(),
        gallery=gallery,
        style=style,
        script=script,
        hashes={"style": _csp_hash(style), "script": _csp_hash(script)},
        chart={"width": WIDTH, "height": HEIGHT},
        long_table=LONG_TABLE,
    )


def _asset(name: str) -> str:
    return (files("ray_wsss.report") / "templates" / name).read_text(encoding="utf-8")


def _csp_hash(text: str) -> str:
    """Hash for the Content-Security-Policy of the ``text`` between the tags of a style or script."""
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"  # noqa: RUF001
