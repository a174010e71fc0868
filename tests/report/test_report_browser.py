"""The report in headless Chromium: what is clicked, typed and seen; and that nothing leaves the machine."""

import csv
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ray_wsss.cli import main
from ray_wsss.data.reader import ShardReader
from ray_wsss.runs.curation.review import read_review

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
    for _ in range(10):  # past the other controls
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.matches('.image')"):
            break
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


def told(page: Any) -> str:
    return page.text_content("#review-told")


def saved(page: Any, folder: Path) -> Path:
    with page.expect_download() as download:
        page.click("#review-save")
    assert download.value.suggested_filename == "review.csv"
    download.value.save_as(folder / "review.csv")
    return folder / "review.csv"


def test_review_by_keyboard(visit: Visit, run: Any, tmp_path: Path) -> None:
    page = visit.page
    assert visit.facts("doubt") == sorted(visit.facts("doubt"), reverse=True)  # the most doubtful comes first
    names = visit.names()
    focused = "document.activeElement.querySelector('.facts b')?.textContent"
    page.locator(".image").first.focus()
    for key in ("a", "r", "ArrowRight", "r", "r"):
        page.keyboard.press(key)
    assert page.evaluate(focused) == names[5]
    assert told(page) == "1 accepted, 3 rejected, 8 left"
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("r")  # again: takes it back
    assert page.evaluate(focused) == names[4]
    assert told(page) == "1 accepted, 2 rejected, 9 left"
    assert page.locator(".image[data-verdict]").count() == 3

    page.select_option("#reviewed", "left")
    left = [name for name in names if name not in (names[0], names[1], names[3])]
    assert visit.names() == left
    page.locator("#cards > .image").nth(1).focus()  # the pictures in a card are images too
    page.keyboard.press("Enter")
    page.keyboard.press("a")  # it leaves the filter: the next one is in its place
    assert page.text_content("#detail-title") == left[2]
    assert visit.names() == [left[0], *left[2:]]
    page.keyboard.press("Escape")
    page.select_option("#reviewed", "reject")
    assert visit.names() == [names[1], names[3]]

    page.reload()
    assert told(page) == "2 accepted, 2 rejected, 8 left"
    found = read_review(saved(page, tmp_path), ShardReader(run.dataset).image_ids, run.dataset)
    assert (found.accepted, found.rejected) == ({names[0], left[1]}, {names[1], names[3]})
    page.fill("#name", "ar")  # typing is no verdict
    assert told(page) == "2 accepted, 2 rejected, 8 left"


def test_review_is_loaded_again(browser: Any, report: Path, tmp_path: Path) -> None:
    """Elsewhere, where the browser has kept nothing."""
    context = browser.new_context()
    page = context.new_page()
    page.goto(report.as_uri())
    assert told(page) == "0 accepted, 0 rejected, 12 left"
    names = page.locator(".image .facts b").all_text_contents()
    path = tmp_path / "other.csv"
    elsewhere = 'not, in "this"\ngallery'
    rows = [("image_id", "verdict"), (names[2], "reject"), (elsewhere, "accept"), (names[3], "accept")]
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        csv.writer(file).writerows(rows)
    page.set_input_files("#review-file", path)
    page.locator("#review-told", has_text="1 accepted").wait_for()
    assert told(page) == "1 accepted, 1 rejected, 10 left, 1 verdicts on images that are not in this gallery"
    with saved(page, tmp_path).open(encoding="utf-8", newline="") as file:
        again = [(row["image_id"], row["verdict"]) for row in csv.DictReader(file)]
    assert again == rows[1:]

    for content, message in {
        "image_id,verdict\na,accept\nb,so\n": "line 3: the verdict is 'so'; expected accept or reject",
        "a,b\n": "line 1: expected the columns image_id,verdict",
    }.items():
        path.write_text(content)
        page.set_input_files("#review-file", path)
        page.locator("#review-error", has_text=f"other.csv, {message}").wait_for(state="visible")
    assert told(page).startswith("1 accepted, 1 rejected")
    context.close()


def test_review_on_a_phone(browser: Any, report: Path) -> None:
    context = browser.new_context(viewport=PHONE, has_touch=True, is_mobile=True)
    page = context.new_page()
    page.goto(report.as_uri())
    names = page.locator(".image .facts b").all_text_contents()
    page.locator("#review-start").tap()
    for button, after in (("accept", names[1]), ("reject", names[2])):
        box = page.locator(f"#detail-{button}").bounding_box()
        assert box["height"] >= 40
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= PHONE["width"]
        assert box["y"] + box["height"] <= PHONE["height"]
        page.locator(f"#detail-{button}").tap()
        assert page.text_content("#detail-title") == after
    page.locator("#detail-previous").tap()
    assert page.get_attribute("#detail-reject", "aria-pressed") == "true"
    page.locator("#detail-close").tap()
    assert told(page) == "1 accepted, 1 rejected, 10 left"
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    context.close()
