"""IoU tables and confused classes of a report, from the metrics of evaluate and the survey of labels."""

from collections.abc import Iterator, Mapping
from statistics import mean
from typing import Any

from ray_wsss.figures.metrics_table import TITLES
from ray_wsss.report.find_run import Metrics
from ray_wsss.report.html import LONG_TABLE, Column, ConfusedPair, Confusion, MetricsTable
from ray_wsss.report.survey import Survey
from ray_wsss.stages.evaluate import describe_measure

_PAIRS = 12


def measured(metrics: list[Metrics], survey: Survey | None, survey_name: str) -> list[tuple[str, str, dict]]:
    """List (title, note, metrics in the form of evaluate) of all evaluations, the survey's first.

    The survey's is left out if evaluate found the same mIoU for the same number of images.
    """
    found = [(title, str(m.path), figures) for m in metrics for title, figures in _groups(m.content)]
    if survey is not None and survey.confusion is not None:
        own = describe_measure(survey.confusion, survey.compared, survey.class_names)
        known = [figures.get("pseudo_label", {}) for _, _, figures in found]
        same = [k for k in known if k.get("images") == own["images"] and _near(k.get("miou"), own["miou"])]
        for figures in same:
            figures.setdefault("confusion", own["confusion"])  # earlier versions did not write it
        if not same:
            note = "images without a label count as background"
            found.insert(0, (f"{survey_name} against their data set's masks", note, {"pseudo_label": own}))
    return found


def make_table(title: str, note: str, figures: Mapping[str, Any]) -> MetricsTable:
    """Table of IoU by class, with a column for each measure of one evaluation; of many, the worst first."""
    names = [name for name in TITLES if name in figures]
    columns = [_column(name, figures[name]) for name in names]
    classes = dict.fromkeys(c for name in names for c in figures[name]["iou"])
    rows = [(c, [figures[name]["iou"].get(c) for name in names]) for c in classes]
    occurring = [(c, values) for c, values in rows if any(value is not None for value in values)]
    if len(occurring) > LONG_TABLE:
        note = ", ".join(part for part in (note, "worst class first") if part)
        occurring.sort(key=lambda row: mean(value for value in row[1] if value is not None))
    return MetricsTable(title=title, note=note, columns=columns, rows=occurring)


def make_confusions(title: str, figures: Mapping[str, Any]) -> Iterator[Confusion]:
    """Most confused classes of each measure; CAMs only at their best threshold."""
    for name in ("cam_best", "pseudo_label", "segmenter"):
        counts = figures.get(name, {}).get("confusion")
        if counts:
            yield _confusion(f"{TITLES[name]} – {title}" if title else TITLES[name], counts)  # noqa: RUF001


def _groups(content: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(title, metrics) of each evaluation in a file; the demo writes several, under ``details``."""
    if any(_is_measure(content.get(name)) for name in TITLES):
        yield "", dict(content)
    for name, figures in dict(content.get("details") or {}).items():
        if isinstance(figures, dict) and any(_is_measure(figures.get(key)) for key in TITLES):
            yield str(name), figures


def _is_measure(value: object) -> bool:
    return isinstance(value, dict) and "miou" in value and isinstance(value.get("iou"), dict)


def _near(one: float | None, other: float) -> bool:
    return one is not None and abs(one - other) < 1e-9


def _column(name: str, entry: Mapping[str, Any]) -> Column:
    note = f"threshold {entry['threshold']:g}" if "threshold" in entry else ""
    return Column(title=TITLES[name], note=note, miou=entry["miou"], images=entry.get("images", 0))


def _confusion(title: str, counts: Mapping[str, Mapping[str, int]]) -> Confusion:
    sizes = {truth: sum(row.values()) for truth, row in counts.items()}
    wrong = [(n, truth, name) for truth, row in counts.items() for name, n in row.items() if name != truth]
    pairs = [
        ConfusedPair(truth=truth, prediction=name, pixels=n, share=n / sizes[truth])
        for n, truth, name in sorted(wrong, key=lambda entry: -entry[0])[:_PAIRS]
    ]
    return Confusion(
        title=title, pairs=pairs, wrong=sum(n for n, _, _ in wrong) / max(1, sum(sizes.values()))
    )
