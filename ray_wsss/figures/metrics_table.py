"""Table of the metrics of evaluate for the terminal."""

from collections.abc import Mapping
from statistics import mean
from typing import Any

from rich.markup import escape
from rich.table import Table

TITLES = {
    "cam_fixed": "CAM, fixed threshold",
    "cam_best": "CAM, best threshold",
    "pseudo_label": "pseudo labels",
    "segmenter": "segmenter",
    "against": "labels against the others",
}
"""Column titles by name of the measure."""

_MOST_CLASSES = 100
"""Classes that the table lists; of more, it lists the worst and the best."""
_EACH = 15
"""Worst and best classes of a longer table."""


def metrics_table(metrics: Mapping[str, Any]) -> Table:
    """Table of the result of `cluster.stages.evaluate.run_evaluate`: mIoU and IoU of every class, in %.

    A measure without a class has a dash there. Without any known measure the table has no rows. Of more than
    100 classes only the worst and the best are listed, by their mean over the measures.
    """
    columns = [name for name in TITLES if name in metrics]
    table = Table(title="IoU in %, background included in the mean")
    table.add_column("class")
    if not columns:
        return table
    for name in columns:
        entry = metrics[name]
        threshold = f"\n{entry['threshold']:.2f}" if "threshold" in entry else ""
        table.add_column(TITLES[name] + threshold, justify="right")
    table.add_row(
        "mean", *[_percent(metrics[name]["miou"]) for name in columns], style="bold", end_section=True
    )
    rows = {
        class_name: [metrics[name]["iou"].get(class_name) for name in columns]
        for class_name in dict.fromkeys(key for name in columns for key in metrics[name]["iou"])
    }
    rows = {name: values for name, values in rows.items() if any(value is not None for value in values)}
    listed = list(rows)
    if len(rows) > _MOST_CLASSES:
        listed.sort(key=lambda name: mean(value for value in rows[name] if value is not None))
    for k, class_name in enumerate(listed):
        if len(rows) <= _MOST_CLASSES or not _EACH <= k < len(rows) - _EACH:
            table.add_row(escape(class_name), *[_percent(value) for value in rows[class_name]])
        elif k == _EACH:
            table.add_section()
            table.add_row(f"{len(rows) - 2 * _EACH:,} others", end_section=True)
            table.caption = "the file of --json has all classes"
    table.add_section()
    table.add_row("images", *[str(metrics[name]["images"]) for name in columns])
    if "against" in columns:
        changed = [metrics[name] for name in columns]
        table.add_row("images changed", *[str(entry.get("images_changed", "-")) for entry in changed])
        table.add_row("pixels changed", *[_percent(entry.get("pixels_changed")) for entry in changed])
    return table


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
