"""How long a report takes to load in headless Chromium, and to sort, filter and turn a page.

python tests/report/measure_load.py runs/report.html
"""

import shutil
import statistics
import sys
from pathlib import Path

from playwright.sync_api import Page, sync_playwright  # pyright: ignore[reportMissingImports]

VISITS = 5
# Until the browser has laid the page out again.
_TIMED = """() => {
  const began = performance.now();
  const choose = (id, at) => {
    const list = document.getElementById(id);
    list.selectedIndex = at;
    list.dispatchEvent(new Event("change"));
  };
  %s;
  document.body.offsetHeight;
  return performance.now() - began;
}"""
_ACTIONS = {
    "sort": "choose('sort', 1)",
    "filter": "choose('class', 1)",
    "show everything": "choose('class', 0)",
    "next page": "document.getElementById('next').click()",
    "show CAMs": "document.querySelector('#layers input').click()",
}


def measure(page: Page, url: str) -> dict[str, float]:
    """Milliseconds by what was done."""
    page.goto(url)
    entry = page.evaluate("() => performance.getEntriesByType('navigation')[0].toJSON()")
    paint = page.evaluate("() => performance.getEntriesByName('first-contentful-paint')[0].startTime")
    times = {"first paint": paint, "loaded": entry["loadEventEnd"]}
    return times | {name: page.evaluate(_TIMED % action) for name, action in _ACTIONS.items()}


def main() -> None:
    path = Path(sys.argv[1]).resolve()
    with sync_playwright() as driver:
        installed = shutil.which("chromium") or driver.chromium.executable_path
        browser = driver.chromium.launch(executable_path=installed, args=["--no-sandbox"])
        visits = [measure(browser.new_page(), path.as_uri()) for _ in range(VISITS)]
        browser.close()
    print(f"{path.stat().st_size / 1e6:.1f} MB; medians of {VISITS} visits, least and most, in ms")
    for name in visits[0]:
        values = [visit[name] for visit in visits]
        print(f"{name}: {statistics.median(values):.0f} ({min(values):.0f} to {max(values):.0f})")


if __name__ == "__main__":
    main()
