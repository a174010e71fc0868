"""The report: one HTML file with everything in it, which asks for nothing over a network.

The page's own style and script are named to the browser by their hashes, and nothing else may run or be
fetched (Content-Security-Policy). Names from the data set reach the page as escaped text, or as JSON in which
no character can end the element it stands in.
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
"""Images whose pictures the page's script reads together; those of a screen or so."""


@dataclass(frozen=True, kw_only=True)
class Tile:
    """A figure at the top of the page."""

    value: str
    label: str
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class StageRow:
    """A stage that ran."""

    name: str
    path: str
    state: str
    version: str
    seeds: str
    began: str
    took: str
    runs: str
    """How often it was worked on, where that is more than once."""
    where: Sequence[str]
    """Machine, cluster, resources."""
    versions: Mapping[str, str]
    settings: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class PhaseRow:
    """A part of a stage's work."""

    name: str
    seconds: float
    share: float | None
    """Of the actors' time, in [0, 1]; None for what is done beside them."""
    images_per_s: float


@dataclass(frozen=True, kw_only=True)
class PipelineRow:
    """What a stage did with the images."""

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
    """What was measured, in a `MetricsTable`."""

    title: str
    note: str
    miou: float
    images: int


@dataclass(frozen=True, kw_only=True)
class MetricsTable:
    """IoU by class."""

    title: str
    note: str
    columns: Sequence[Column]
    rows: Sequence[tuple[str, Sequence[float | None]]]
    """(class, IoU in [0, 1] by column; None for a class that never occurs)."""


@dataclass(frozen=True, kw_only=True)
class ConfusedPair:
    """Pixels of one class that were taken for another."""

    truth: str
    prediction: str
    pixels: int
    share: float
    """Of the true class's pixels, in [0, 1]."""


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """The pairs of classes that are confused most."""

    title: str
    pairs: Sequence[ConfusedPair]
    wrong: float
    """Share of wrong pixels among all, in [0, 1]."""


@dataclass(frozen=True, kw_only=True)
class ClassRow:
    """What labelling made of one class."""

    name: str
    masks: int
    score: float


@dataclass(frozen=True, kw_only=True)
class FailedImage:
    """An image that a stage failed on."""

    image: str
    stage: str
    reason: str


@dataclass(kw_only=True)
class Report:
    """All of the page but the gallery's images."""

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
    """What is shown of what, above the gallery; empty without one."""
    class_names: Sequence[str] = ()


def render_report(report: Report, images: Iterator[GalleryImage], side_px: int) -> Iterator[str]:
    """The page in pieces; only a few images are in memory at a time.

    Args:
        images: asked for while the page is made; what fails meanwhile may be added to ``report.failed``.
        side_px: long side of the gallery's pictures.
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
    style, script = _asset("report.css"), _asset("theme.js") + _asset("gallery.js")
    gallery = {
        "facts": facts,
        "layers": layers,
        "classNames": list(report.class_names),
        "colours": [f"rgb({r}, {g}, {b})" for r, g, b in palette[1:].tolist()],
        "perBlock": PICTURES_PER_BLOCK,
    }
    return environment.get_template("report.html").generate(
        report=report,
        blocks=blocks(),
        gallery=gallery,
        style=style,
        script=script,
        hashes={"style": _csp_hash(style), "script": _csp_hash(script)},
        chart={"width": WIDTH, "height": HEIGHT},
    )


def _asset(name: str) -> str:
    return (files("ray_wsss.report") / "templates" / name).read_text(encoding="utf-8")


def _csp_hash(text: str) -> str:
    """As browsers compute it, of what stands between the tags."""
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"  # noqa: RUF001
