"""Tables of what the check found: each goal with its figure, then each part."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Goal:
    """A figure to reach; ratios hold on every card, rates are meant for an H100."""

    part: str
    path: tuple[str, ...]
    """Keys that lead to the figure among those of its part."""
    what: str
    least: float
    only_on: str = ""
    """Part of the name of the card that the goal is meant for; empty: every GPU."""


GOALS = (
    Goal(part="sam_vit_h", path=("images_per_s", "best"), what="ViT-H, images/s", least=80, only_on="H100"),
    Goal(part="sam_vit_b", path=("images_per_s", "best"), what="ViT-B, images/s", least=400, only_on="H100"),
    Goal(part="label", path=("prompting_speedup",), what="prompting over the naive loop", least=10),
    Goal(part="peaks", path=("over_skimage",), what="peaks over scikit-image", least=50),
    Goal(part="train", path=("crop_over_image",), what="CPM with view=image over view=crop, ViT-H", least=20),
)


def judge(results: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each goal with its figure, and whether it is reached; None where it can't be told."""
    card = results.get("device", {}).get("figures", {}).get("name", "")
    judged = []
    for goal in GOALS:
        value = _look_up(results.get(goal.part, {}).get("figures"), goal.path)
        meant = goal.only_on in card
        reached = value >= goal.least if value is not None and meant else None
        judged.append({"goal": goal.what, "least": goal.least, "measured": value, "reached": reached})
    return judged


def _look_up(figures: Any, path: tuple[str, ...]) -> float | None:
    for step in path:
        if not isinstance(figures, Mapping):
            return None
        if step == "best":
            figures = max((v for v in figures.values() if v is not None), default=None)
        else:
            figures = figures.get(step)
    return figures


def to_markdown(results: Mapping[str, Mapping[str, Any]], goals: list[dict[str, Any]]) -> str:
    """Two Markdown tables, for a document."""
    device = results.get("device", {}).get("figures", {})
    lines = [f"GPU check on {device.get('name', 'an unknown device')}, torch {device.get('torch', '?')}", ""]
    lines += ["| goal | at least | measured | reached |", "|---|---|---|---|"]
    answer = {True: "yes", False: "no", None: "-"}
    for goal in goals:
        measured = "-" if goal["measured"] is None else f"{goal['measured']:.3g}"
        lines.append(f"| {goal['goal']} | {goal['least']:g} | {measured} | {answer[goal['reached']]} |")
    lines += ["", "| part | result | seconds | note |", "|---|---|---|---|"]
    for name, result in results.items():
        seconds = f"{result['seconds']:.0f}" if result.get("seconds") is not None else "-"
        lines.append(f"| {name} | {result['status']} | {seconds} | {_note(name, result)} |")
    return "\n".join(lines) + "\n"


def _note(name: str, result: Mapping[str, Any]) -> str:
    figures = result.get("figures", {})
    if "reason" in result:
        return result["reason"].replace("|", "/").partition("\n")[0]
    if name == "tests":
        failed, skipped = len(figures["failed"]), len(figures["skipped"])
        return f"{figures['passed']} passed, {failed} failed, {skipped} skipped"
    if name == "memory":
        return f"beyond the budget: {', '.join(figures['beyond_budget']) or 'nothing'}"
    if name == "device":
        rates = (f"{precision} {rate:.3g}" for precision, rate in figures["matmul_tflops"].items())
        return f"TFLOP/s: {', '.join(rates)}"
    if name.startswith("sam_"):
        rates = (f"{way} {rate:.3g}" for way, rate in figures["images_per_s"].items() if rate is not None)
        return f"images/s: {', '.join(rates)}; share of peak {figures['matmul_share']:.2f}"
    if name.startswith("sam2.1_"):
        rates = (f"{way} {rate:.3g}" for way, rate in figures["images_per_s"].items())
        return f"images/s: {', '.join(rates)}; mask IoU {figures['mask_iou']:.4f}"
    return ""
