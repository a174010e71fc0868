"""Tables and numbers as the results page shows them."""

from collections.abc import Sequence
from statistics import mean


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown: first column to the left, others to the right."""
    rule = ["---", *["--:"] * (len(titles) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |".replace("|  |", "| |") for cells in (titles, rule, *rows))


def percent(value: float) -> str:
    """A share in %, with one decimal."""
    return f"{100 * value:.1f}"


def seed_titles(seeds: Sequence[int]) -> list[str]:
    """A title for each seed, and one for their mean if there are several."""
    return [f"seed {seed}" for seed in seeds] + ["mean"] * (len(seeds) > 1)


def seed_cells(values: Sequence[float]) -> list[str]:
    """Shares in % of each seed, and their mean if there are several."""
    return [percent(value) for value in values] + [percent(mean(values))] * (len(values) > 1)
