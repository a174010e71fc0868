"""The report in headless Chromium: what is clicked, typed and seen; and that nothing leaves the machine."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ray_wsss.cli import main

playwright = pytest.importorskip("playwright.sync_api", reason="needs pip install -e '.[browser]'")

DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium of the system, or the one that playwright has installed."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    installed = next((path for name in names if (path := shutil.which(name))), None)
    with playwright.sync_playwright() as driver:
        executable = installed or driver.chromium.executable_path
        if not Path(executable).exists():
            pytest.skip("no Chromium: install the package chromium, or run 'playwright install chromium'")
        # Containers' root user has no sandbox; the page is our own.
        chromium = driver.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def report(run: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("page") / "report.html"
    assert main(["report", str(run.root), "--images", "12", "--out", str(out)]) == 0
    return out


class Visit:
    """A page that was opened from disk, what its console said, and what it asked for."""

    def __init__(self, browser: Any, report: Path, **options: Any) -> None:
        self.page = browser.new_page(**({"viewport": DESKTOP} | options))
        self.said: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.said.append(dialog.message), dialog.dismiss()))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.url = report.as_uri()
        self.page.goto(self.url)

    def names(self) -> list[str]:
        """Of the images that are shown, in order."""
        return self.page.locator(".image .facts b").all_text_contents()

    def images(self, layer: str) -> int:
        """How many pictures of a layer are shown, decoded."""
        script = "all => all.filter(image => image.complete && image.naturalWidth > 0).length"
        return self.page.locator(f"#cards img.{layer}").evaluate_all(script)

    def facts(self, key: str) -> list[Any]:
        """What the shown images' facts say, in order."""
        data = self.page.evaluate("() => JSON.parse(document.getElementById('data').textContent).facts")
        by_id = {entry["id"]: entry[key] for entry in data}
        return [by_id[name] for name in self.names()]


@pytest.fixture
def visit(browser: Any, report: Path) -> Iterator[Visit]:
    made = Visit(browser, report)
    yield made
    assert made.said == []
    assert [url for url in made.requests if url != made.url and not url.startswith("data:")] == []
    made.page.close()


def test_layers_are_shown_and_hidden(visit: Visit) -> None:
    page = visit.page
    page.wait_for_function("() => [...document.images].every(image => image.complete)")
    assert visit.images("image") == visit.images("label") == len(visit.names()) == 12
    assert page.locator("#cards circle").count() > 0
    for name in ("cam", "masks", "prediction", "truth"):
        assert visit.images(name) == 0
        page.check(f"#layers input[value={name}]")
        page.wait_for_function("() => [...document.images].every(image => image.complete)")
        assert visit.images(name) > 0
        page.uncheck(f"#layers input[value={name}]")
        assert visit.images(name) == 0
    page.uncheck("#layers input[value=points]")
    assert page.locator("#cards circle").count() == 0


def test_sorting_and_filtering(visit: Visit, run: Any) -> None:
    page = visit.page
    for key in ("score", "iou", "predictionIou"):
        page.select_option("#sort", key)
        values = [value for value in visit.facts(key) if value is not None]
        assert values == sorted(values)
        page.select_option("#sort", f"-{key}")
        values = [value for value in visit.facts(key) if value is not None]
        assert values == sorted(values, reverse=True)
    page.select_option("#group", "worst")
    assert len(visit.names()) == 4
    assert page.text_content("#count") == "4 of 12 images"
    page.select_option("#group", "")
    page.select_option("#class", "2")
    assert all(2 in classes for classes in visit.facts("classes"))
    page.select_option("#class", "")
    wanted = visit.names()[5]
    page.fill("#name", wanted)
    assert visit.names() == [wanted]
    assert page.locator("#class option", has_text=run.class_names[0]).count() == 1


def test_by_keyboard_alone(visit: Visit) -> None:
    page = visit.page
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "name"
    page.keyboard.type("1090")
    page.keyboard.press("Tab")
    focused = "document.activeElement.querySelector('.facts b')?.textContent"
    names = visit.names()
    assert page.evaluate(focused) == names[0]
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    assert page.evaluate(focused) == names[1]
    page.keyboard.press("1")
    assert page.locator("#layers input[value=cam]").is_checked()
    assert visit.images("cam") > 0
    assert page.evaluate(focused) == names[1]
    page.keyboard.press("Enter")
    assert page.text_content("#detail-title") == names[1]
    assert page.locator("#panels figure").count() == 7
    page.keyboard.press("ArrowRight")
    assert page.text_content("#detail-title") == names[2]
    page.keyboard.press("Escape")
    assert not page.locator("#detail").is_visible()
    page.wait_for_function(f"name => {focused} === name", arg=names[2])


def test_names_are_text(visit: Visit, run: Any) -> None:
    page = visit.page
    page.fill("#name", "<script>")
    if not visit.names():  # not among the twelve
        page.fill("#name", "")
    assert page.locator("#legend li").first.text_content() == run.class_names[0]
    for name in (*run.evil_names, run.root.name):
        assert name in page.locator("body").inner_text() + page.locator("body").text_content()
    assert page.evaluate("document.querySelectorAll('main b b, main i, img[src=x]').length") == 0


def test_nothing_can_be_fetched(browser: Any, report: Path) -> None:
    """What an attacker would write, were anything let through."""
    visit = Visit(browser, report)
    fetching = "fetch('http://127.0.0.1:9/x').then(() => 'fetched', () => 'refused')"
    assert visit.page.evaluate(fetching) == "refused"
    image = "<img src=//127.0.0.1:9/x onerror=alert(3)>"
    visit.page.evaluate("html => document.body.insertAdjacentHTML('beforeend', html)", image)
    visit.page.wait_for_timeout(200)
    assert visit.requests == [visit.url]
    assert "3" not in visit.said
    assert all("Content Security Policy" in line for line in visit.said)
    visit.page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE])
def test_fits_the_screen_in_the_colours_of_the_system(
    browser: Any, report: Path, size: dict[str, int], scheme: str
) -> None:
    visit = Visit(browser, report, viewport=size, color_scheme=scheme)
    page = visit.page
    assert page.evaluate("document.documentElement.scrollWidth") == size["width"]
    page.locator(".image").first.click()
    assert page.evaluate("document.getElementById('detail').scrollWidth") <= size["width"]
    page.keyboard.press("Escape")

    def lightness() -> float:
        colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
        return sum(float(value) for value in colour.strip("rgb()").split(",")) / 3 / 255

    assert (lightness() > 0.9) == (scheme == "light")
    other = "dark" if scheme == "light" else "light"
    while page.evaluate("document.documentElement.dataset.theme") != other:
        page.click("#theme")
    assert (lightness() > 0.9) == (other == "light")
    page.reload()
    assert (lightness() > 0.9) == (other == "light")
    assert visit.said == []
    page.close()
