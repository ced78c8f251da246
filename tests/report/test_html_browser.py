"""The HTML pages in a real browser: offline, without an error, at any width, light and dark, by keyboard, audited."""

from __future__ import annotations

import os
import shutil

import pytest

from portproof.report.html import matrix_to_html, to_html

pytestmark = pytest.mark.browser

html5lib = pytest.importorskip("html5lib", reason="html5lib is not installed: nox -s browser")
sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: nox -s browser")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed: nox -s browser")

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
# Nothing of the browser's own should go out either; the sandbox needs rights that a container does not have.
QUIET = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
LONG = "backbone.stages.3.blocks.17.token_mixer.reparam_depthwise_convolution_bn"


@pytest.fixture(scope="module")
def browser():
    found = os.environ.get("PORTPROOF_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip("no Chromium: PORTPROOF_CHROMIUM, or one of these on PATH: " + ", ".join(NAMES))
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=found, args=QUIET)
        yield opened
        opened.close()


@pytest.fixture(params=["same", "differs", "undecided", "matrix", "matrix of many"])
def text(request, given):
    """Pages of every kind."""
    make = {
        "same": lambda: to_html(given.whole(40)),
        "differs": lambda: to_html(given.whole(40, wrong_from=9, name=f"{LONG}.{{}}.conv")),
        "undecided": lambda: to_html(given.undecided()),
        "matrix": lambda: matrix_to_html(given.matrix(layers=12)),
        "matrix of many": lambda: matrix_to_html(given.matrix(layers=12, classes=8)),
    }
    return make[request.param]()


@pytest.fixture
def opened(browser, text, tmp_path):
    """Opens the page offline, in a context of these options; what it asked for and complained of comes with it."""
    path = tmp_path / "page.html"
    path.write_text(text, encoding="utf-8")
    contexts = []

    def opener(**options):
        context = browser.new_context(offline=True, **options)
        contexts.append(context)
        page = context.new_page()
        page.asked, page.said = [], []
        page.on("request", lambda request: page.asked.append(request.url))
        page.on("console", lambda message: page.said.append(message.text))
        page.on("pageerror", lambda error: page.said.append(str(error)))
        page.goto(path.as_uri())
        return page

    yield opener
    for context in contexts:
        context.close()


def open_all(page):
    page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")


def test_the_html_standard_finds_no_error(text):
    parser = html5lib.HTMLParser(strict=False)
    parser.parse(text)
    assert parser.errors == []


def test_it_asks_for_nothing_and_complains_of_nothing(opened):
    page = opened()
    open_all(page)
    assert len(page.asked) == 1
    assert page.said == []


@pytest.mark.parametrize("width", [320, 400, 768, 1200, 1920])
def test_no_width_scrolls_sideways(opened, width):
    page = opened(viewport={"width": width, "height": 800})
    for _ in range(2):
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        open_all(page)


def test_it_is_complete_without_its_script(opened):
    with_script, without = opened(), opened(java_script_enabled=False)
    for page in (with_script, without):
        assert page.locator("h1").is_visible()
    rows = "table tbody tr"
    assert with_script.locator(rows).count() == without.locator(rows).count()


def colour(page, selector, name):
    return page.locator(selector).first.evaluate(f"(each) => getComputedStyle(each).{name}")


def test_dark_and_light_have_colours_of_their_own(opened):
    light, dark = opened(color_scheme="light"), opened(color_scheme="dark")
    for selector, name in (("body", "backgroundColor"), ("body", "color"), (".verdict", "backgroundColor")):
        assert colour(light, selector, name) != colour(dark, selector, name)
    assert colour(light, "body", "backgroundColor") == "rgb(255, 255, 255)"


def test_the_keyboard_reaches_everything_in_order(opened):
    page = opened()
    open_all(page)
    wanted = page.evaluate(
        """() => {
          const all = [...document.querySelectorAll('a[href], summary, button, input, [tabindex="0"]')];
          all.forEach((each, i) => { each.dataset.order = i; });
          return all.length;
        }"""
    )
    reached = []
    for _ in range(min(wanted, 150)):
        page.keyboard.press("Tab")
        order, ring = page.evaluate(
            "[Number(document.activeElement.dataset.order), getComputedStyle(document.activeElement).outlineStyle]"
        )
        assert ring == "solid"
        reached.append(order)
    assert reached == list(range(len(reached)))


def test_tables_sort_and_filter(opened):
    page = opened()
    open_all(page)
    tables = page.locator("table.sortable")
    for index in range(tables.count()):
        table = tables.nth(index)
        last = table.locator("thead th").count() - 1
        heading = table.locator("thead th.n").last
        column = heading.evaluate("(each) => each.cellIndex")
        assert column <= last
        before = table.locator("tbody tr").count()
        for direction in ("descending", "ascending"):
            heading.locator("button").click()
            assert heading.get_attribute("aria-sort") == direction
            shown = table.evaluate(
                "(each, i) => [...each.tBodies[0].rows].map((row) => row.cells[i].textContent)", column
            )
            values = [
                float(each.replace(",", "").split()[0].removesuffix("✗") or "-1") if each else -1.0 for each in shown
            ]
            assert values == sorted(values, reverse=direction == "descending")
        assert table.locator("tbody tr").count() == before


def test_a_filter_hides_rows_and_says_how_many_are_left(browser, given, tmp_path):
    path = tmp_path / "page.html"
    path.write_text(to_html(given.whole(162, wrong_from=40)), encoding="utf-8")
    page = browser.new_page()
    page.goto(path.as_uri())
    page.locator("#figure-1 ~ details summary").click()
    page.get_by_label("Show rows with").first.fill("features.7.")
    assert page.get_by_role("status").first.text_content() == "1 of 162 rows"
    page.get_by_label("Show rows with").first.fill("")
    page.get_by_label("above the limit only").first.check()
    assert page.get_by_role("status").first.text_content() == f"{162 - 40} of 162 rows"
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_an_accessibility_audit_finds_nothing(opened, scheme):
    page = opened(color_scheme=scheme, bypass_csp=True)  # the auditor is a script of its own
    open_all(page)
    found = axe.Axe().run(page, options={"resultTypes": ["violations"]})
    assert found.violations_count == 0, found.generate_report()


def test_the_auditor_would_find_something(browser, given, tmp_path):
    path = tmp_path / "page.html"
    path.write_text(to_html(given.report()), encoding="utf-8")
    page = browser.new_page(bypass_csp=True)
    page.goto(path.as_uri())
    page.evaluate("document.documentElement.lang = ''; document.querySelector('.lead').style.color = '#bbb'")
    found = {each["id"] for each in axe.Axe().run(page).response["violations"]}
    page.close()
    assert {"html-has-lang", "color-contrast"} <= found


def test_its_policy_stops_what_a_name_could_smuggle_in(opened):
    page = opened()
    page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.smuggled = 1\">')")
    page.evaluate(
        """() => {
          const script = document.createElement('script');
          script.text = 'window.smuggled = 1';
          document.body.append(script);
        }"""
    )
    page.wait_for_timeout(100)
    assert page.evaluate("window.smuggled") is None
    assert any("Content Security Policy" in each for each in page.said)


def test_printing_shows_what_is_folded(opened):
    page = opened()
    page.emulate_media(media="print")
    hidden = page.evaluate(
        """() => [...document.querySelectorAll('details > :not(summary)')]
          .filter((each) => each.getBoundingClientRect().height === 0 && each.textContent.trim()
                            && !each.classList.contains('tools')).length"""
    )
    assert hidden == 0
