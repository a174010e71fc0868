"""Table of the comparison of prompts for the terminal."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from ray_wsss.figures.prompt_figure import TITLES


def prompt_table(metrics: Mapping[str, Any]) -> Table:
    """Table of the metrics of `cluster.stages.compare_prompts`, in %."""
    cases = metrics["cases"]
    table = Table(title="pseudo labels by kind of prompt, in %")
    table.add_column("prompt")
    table.add_column("mIoU of labels", justify="right")
    for name, case in cases.items():
        table.add_column(f"IoU of {case['pairs']} masks: {name}", justify="right")
    for kind, title in ((kind, TITLES[kind]) for kind in TITLES if kind in metrics["miou"]):
        of_cases = [_percent(case["iou"][kind]) for case in cases.values()]
        table.add_row(title, _percent(metrics["miou"][kind]), *of_cases)
    return table


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}"
