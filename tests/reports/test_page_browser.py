"""The report page in a browser: it sorts, filters, listens to keys, logs no error and asks nothing of the network."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from page_cases import pictured_run

pytest.importorskip("vl_convert")
sync_api = pytest.importorskip("playwright.sync_api")

from optcam_pl.reports.page import write_page  # noqa: E402

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = os.environ.get("OPTCAM_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: install it, or name one in OPTCAM_CHROMIUM"),
]


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    methods = [pictured_run(folder / name, shift=shift) for shift, name in enumerate(("OptiCAM", "GradCAM", "FakeCAM"))]
    other = pictured_run(folder / ("one_word_that_is_longer_than_a_phone_is_wide" * 2), shift=3)
    return write_page(methods, folder / "out", against=other)


@pytest.fixture(scope="module")
def chromium() -> Iterator[sync_api.Browser]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(params=[(1280, 900, "light"), (390, 844, "dark")], ids=["desktop", "phone"])
def page(request: pytest.FixtureRequest, chromium: sync_api.Browser, index: Path) -> Iterator[sync_api.Page]:
    """The opened page; afterwards: nothing was logged, and nothing was asked for outside of its folder."""
    width, height, scheme = request.param
    context = chromium.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    opened, said, asked = context.new_page(), [], []
    opened.on("console", lambda message: said.append(message.text))
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.on("request", lambda one: asked.append(one.url))
    opened.goto(index.as_uri())
    yield opened
    context.close()
    assert said == []
    assert [url for url in asked if not url.startswith((index.parent.as_uri(), "data:"))] == []


def test_a_page_of_one_file_shows_its_pictures_and_asks_for_nothing(chromium, tmp_path):
    run = pictured_run(tmp_path / "OptiCAM")
    file = write_page([run], tmp_path / "page.html").rename(tmp_path / "sent.html")
    opened, asked = chromium.new_page(), []
    opened.on("request", lambda one: asked.append(one.url))
    opened.goto(file.as_uri())
    opened.locator("#images article").first.scroll_into_view_if_needed()
    opened.wait_for_function(
        "[...document.querySelectorAll('article:first-child img')].every((image) => image.naturalWidth)"
    )
    opened.close()
    assert [url for url in asked if not url.startswith("data:")] == [file.as_uri()]


def ids(page: sync_api.Page) -> list[str]:
    return page.locator("#images .title span").all_text_contents()


def test_a_heading_sorts_the_table_by_mouse_and_by_keys(page):
    heads = page.locator("#table tbody th")
    button = page.locator("#table thead button").nth(1)
    value = "[...document.querySelectorAll('#table tbody tr')].map((row) => Number(row.cells[1].dataset.sort))"
    button.click()
    up = page.evaluate(value)
    assert up == sorted(up)
    assert page.locator("#table thead th").nth(1).get_attribute("aria-sort") == "ascending"
    button.focus()
    page.keyboard.press("Enter")
    assert page.evaluate(value) == up[::-1]
    page.locator("#table thead button").first.click()
    assert heads.all_text_contents() == ["FakeCAM", "GradCAM", "OptiCAM"]


def test_the_gallery_is_filtered_and_ordered(page):
    assert ids(page) == [f"{i}.png" for i in range(12)]
    assert page.locator("#class option").all_text_contents() == ["all", "<b>lynx</b> (4)", "tabby (4)", "tiger cat (4)"]
    page.select_option("#class", label="tiger cat (4)")
    assert ids(page) == ["1.png", "4.png", "7.png", "10.png"]
    page.check("#wrong")
    assert ids(page) == ["4.png"]
    assert page.locator("#images .title em").text_content() == "predicted: tabby"
    page.fill("#find", "nothing of the kind")
    assert page.locator("#none").is_visible()
    page.click("#reset")
    assert page.locator("#count").text_content() == "12 of 12 images"
    page.select_option("#order", "drop")
    page.select_option("#by", label="OptiCAM")
    assert ids(page) == [f"{i}.png" for i in range(12)]  # its o rises with the index
    page.select_option("#order", "gain")
    assert ids(page) == [f"{i}.png" for i in reversed(range(12))]
    page.select_option("#by", label="GradCAM")
    assert ids(page)[0] == "10.png"
    page.select_option("#order", "disagreement")
    assert len(ids(page)) == 12


def test_keys_find_move_enlarge_and_close(page):
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "find"
    page.keyboard.type("7.p")
    assert ids(page) == ["7.png"]
    page.fill("#find", "")
    page.locator("h1").click()
    focused = "document.activeElement.querySelector('.title span')?.textContent"
    page.keyboard.press("j")
    page.keyboard.press("j")
    assert page.evaluate(focused) == "1.png"
    page.keyboard.press("k")
    assert page.evaluate(focused) == "0.png"
    page.keyboard.press("Enter")
    dialog = page.locator("#large")
    assert dialog.is_visible()
    assert "AD 80.00" in dialog.text_content()
    page.keyboard.press("ArrowRight")
    assert "1.png" in dialog.text_content()
    page.keyboard.press("Escape")
    assert not dialog.is_visible()


def test_pictures_and_charts_are_there_in_both_themes(page):
    page.locator("#images article").first.scroll_into_view_if_needed()
    page.wait_for_function(
        "[...document.querySelectorAll('article:first-child img')].every((image) => image.naturalWidth)"
    )
    for chart in page.locator("[data-chart]").all():
        chart.scroll_into_view_if_needed()
        chart.locator("svg").wait_for()
    before = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.click("#theme")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != before
    page.wait_for_function("document.querySelectorAll('[data-chart] svg').length > 0")
    page.locator(".bind select").select_option("AG")
    page.locator("[data-chart]").last.locator("svg").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
