"""The demo's scores, for its JSON file and for the terminal."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table


def metrics_of(found: Mapping[str, Any]) -> dict[str, Any]:
    """The content of ``metrics.json``, from the results of the steps by name; empty without ground truth."""
    plain, cpm = found["measure_plain"], found["measure_cpm"] | found["measure_segmenter"]
    if not plain:
        return {}
    return {
        "cam_plain_miou": plain["cam_best"]["miou"],
        "cam_cpm_miou": cpm["cam_best"]["miou"],
        "cam_plain_fixed_threshold_miou": plain["cam_fixed"]["miou"],
        "cam_cpm_fixed_threshold_miou": cpm["cam_fixed"]["miou"],
        "pseudo_label_plain_miou": plain["pseudo_label"]["miou"],
        "pseudo_label_miou": cpm["pseudo_label"]["miou"],
        "segmenter_miou": cpm["segmenter"]["miou"],
        "details": {"plain": plain, "cpm": cpm},
    }


def demo_table(metrics: Mapping[str, Any]) -> Table:
    """The mIoUs of a demo (`metrics_of`) as a table."""
    fixed = " and ".join(f"{found['cam_fixed']['threshold']:g}" for found in metrics["details"].values())
    table = Table(title="mIoU in % on held-out images")
    for column in ("", "without CPM", "with CPM"):
        table.add_column(column, justify="left" if not column else "right")
    for title, plain, cpm in (
        ("CAM, best threshold", "cam_plain_miou", "cam_cpm_miou"),
        (f"CAM, fixed threshold ({fixed})", "cam_plain_fixed_threshold_miou", "cam_cpm_fixed_threshold_miou"),
        ("pseudo labels", "pseudo_label_plain_miou", "pseudo_label_miou"),
        ("segmenter", None, "segmenter_miou"),
    ):
        table.add_row(title, *[f"{100 * metrics[k]:.1f}" if k else "" for k in (plain, cpm)])
    return table
