"""Links of the README and of other files outside docs lead somewhere; mkdocs build --strict checks docs."""

import re
from pathlib import Path

import pytest
from document_blocks import ROOT

FILES = [ROOT / "README.md", ROOT / ".github" / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.M)


def _slug(heading: str) -> str:
    """The anchor of a heading, on the site and on GitHub alike."""
    return re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower())


def _anchors(path: Path) -> set[str]:
    return {_slug(heading) for heading in _HEADING.findall(path.read_text(encoding="utf-8"))}


def _dead_links(path: Path, text: str) -> list[str]:
    dead = []
    for link in _LINK.findall(text):
        if "://" in link:
            continue
        file, _, anchor = link.partition("#")
        target = path.parent / file if file else path
        if not target.exists() or (anchor and anchor not in _anchors(target)):
            dead.append(link)
    return dead


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_links(path: Path) -> None:
    assert _dead_links(path, path.read_text(encoding="utf-8")) == []


def test_dead_links_are_noticed() -> None:
    text = "[a](docs/data.md#split) [b](docs/data.md#spilt) [c](docs/date.md) [d](https://x.org/#y)"
    assert _dead_links(ROOT / "README.md", text) == ["docs/data.md#spilt", "docs/date.md"]


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 170
