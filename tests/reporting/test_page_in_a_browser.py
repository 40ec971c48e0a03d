"""The page in a real browser: Debian's `chromium`, or whatever of its kind there is."""

import re
import shutil

import pytest
from conftest import digits_config
from made_runs import make_diagnosis, make_run, store_diagnosis
from made_sweeps import make_sweep

import train
from reporting import against, page, runs, sweep

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

pytestmark = pytest.mark.slow

# What is wider than it may be without a way to scroll to it, in words.
OVERFLOW = """
() => [...document.querySelectorAll("body *")]
    .filter(e => !e.closest(".scroll, pre, svg") && e.getBoundingClientRect().right > innerWidth + 0.5)
    .map(e => e.tagName + " " + e.textContent.slice(0, 40))
"""
# Text whose contrast to the page is below WCAG AA (4.5 to 1), in words. Colours that let the page through are left out.
FAINT = """
() => {
    const light = text => text.match(/[\\d.]+/g).slice(0, 3).map(x => x / 255)
        .map(x => x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4)
        .reduce((sum, x, k) => sum + x * [0.2126, 0.7152, 0.0722][k], 0);
    const below = e => {
        const found = getComputedStyle(e).backgroundColor;
        return found === "rgba(0, 0, 0, 0)" ? (e.parentElement ? below(e.parentElement) : "rgb(255, 255, 255)") : found;
    };
    return [...document.querySelectorAll("main *")]
        .filter(e => !e.closest("svg") && [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim()))
        .filter(e => {
            const [a, b] = [light(getComputedStyle(e).color), light(below(e))];
            return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05) < 4.5;
        }).map(e => e.tagName + " " + e.textContent.slice(0, 40));
}
"""
# Of each picture that is not folded away: its box, its alternative text, and the smallest text in it, in pixels.
PICTURES = """
() => [...document.querySelectorAll("svg[role=img]")]
    .filter(e => !e.closest("details") && e.checkVisibility()).map(e => ({
    width: e.getBoundingClientRect().width,
    height: e.getBoundingClientRect().height,
    alt: e.getAttribute("aria-label"),
    text: Math.min(...[...e.querySelectorAll("text")].map(t =>
        parseFloat(getComputedStyle(t).fontSize) * e.getBoundingClientRect().width / e.viewBox.baseVal.width)),
    ink: getComputedStyle(e.querySelector("text")).fill,
    curves: e.querySelectorAll("path").length,
    cut: [...e.querySelectorAll("text")].filter(t => {
        const [text, box] = [t.getBoundingClientRect(), e.getBoundingClientRect()];
        return text.left < box.left || text.right > box.right || text.top < box.top || text.bottom > box.bottom;
    }).map(t => t.textContent),
}))
"""


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    found = [path for name in BROWSERS if (path := shutil.which(name))]
    if not found:
        pytest.skip(f"no browser; one of {', '.join(BROWSERS)} is needed: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found[0], args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict:
    """Of a real run with a diagnosis, of three seeds, of three configs with long names, also against these, a sweep."""
    folder = tmp_path_factory.mktemp("runs")
    train.train_and_evaluate(digits_config(), folder / "real")
    numbers = make_diagnosis("a_long_name_" * 5 + "1", "another_long_name_" * 4 + "2")
    made = {"one": [store_diagnosis(folder / "real", numbers)]}
    made["seeds"] = [make_run(folder / f"seed{seed}", seed=seed) for seed in range(3)]
    made["configs"] = [
        make_run(folder / ("a_long_name_" * 5 + str(size)), config={"batch_size": size}) for size in (1, 2, 3)
    ]
    for name, group in made.items():
        page.write_to(folder / name, *runs.group(group))
    groups, others = runs.group(made["configs"])[0], runs.group(made["seeds"])[0]
    compared = against.compare(groups, others)
    page.write_to(folder / "against", [*groups, *others], compared.remarks, compared)
    fields = {"optimizer.learning_rate": ["0.01", "0.1", "1"], "model.name": ["mlp", "a_long_name_" * 5]}
    scores = {"validation/raw": 0.5, "validation/ema": 0.9, "test/raw": 0.5, "test/ema": 0.9}

    def score(rate, name, seed):
        return {key: value - len(name) / 1e4 - seed * float(rate) / 100 for key, value in scores.items()}

    sweep.write(make_sweep(folder / "sweep", fields, score, seeds=3))
    return {name: folder / name / "report.html" for name in (*made, "against", "sweep")}


@pytest.mark.parametrize("kind", ["one", "seeds", "configs", "against", "sweep"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1440])
def test_the_page_can_be_read(browser, pages, kind, scheme, width):
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    said, asked = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"file://{pages[kind]}")
    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [f"file://{pages[kind]}"]  # nothing is loaded
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(OVERFLOW) == []
    assert page.evaluate(FAINT) == []

    shown = page.evaluate(PICTURES)
    # Three panels of curves, and the kernels; of the real run confusions, confidence, and of its diagnosis three
    # lines, a plane, ensembles and oscillations.
    assert (
        len(shown) == {"one": 3 + 1 + 3 + 3 * 2 + 1 + 2 + 2, "seeds": 4, "configs": 4, "against": 4, "sweep": 3}[kind]
    )
    for picture in shown:
        assert picture["height"] > 100
        assert picture["curves"] > 5
        assert len(picture["alt"]) > 50
        assert picture["cut"] == []
        assert picture["text"] >= 9  # pixels, as the smallest that browsers call readable
        light, dark = "rgb(27, 27, 27)", "rgb(236, 236, 236)"  # the colours of the page's text
        assert picture["ink"] == (dark if scheme == "dark" else light)
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(22, 22, 22)" if scheme == "dark" else "rgb(255, 255, 255)")
    ids = re.findall(r'\bid="([^"]+)"', pages[kind].read_text())
    assert len(ids) == len(set(ids))
    page.close()


def test_values_are_shown_at_the_pointer_and_the_keys_and_curves_can_be_switched_off(browser, pages):
    page = browser.new_page(viewport={"width": 1440, "height": 900})
    page.goto(f"file://{pages['seeds']}")
    plot = page.locator(".plot").first
    box = plot.bounding_box()
    page.mouse.move(box["x"] + 0.95 * box["width"], box["y"] + 0.5 * box["height"])
    tip = plot.locator(".tip")
    # `make_run` has accuracies of 70 and 80 % at step 20 for every seed.
    assert tip.locator("div").all_text_contents() == ["step 20", "raw: 70 (70 .. 70)", "ema: 80 (80 .. 80)"]
    curves = plot.locator("svg .line-0")
    assert curves.count() > 1
    assert curves.first.is_visible()
    raw = page.get_by_role("button", name="raw", exact=True)
    raw.click()
    assert raw.get_attribute("aria-pressed") == "false"
    assert not curves.first.is_visible()
    assert plot.locator("svg .line-1").first.is_visible()
    plot.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    assert tip.locator("div").all_text_contents() == ["step 10", "ema: 60 (60 .. 60)"]
    raw.click()
    assert curves.first.is_visible()
    assert not tip.is_visible()
    page.close()


def test_on_a_logarithmic_axis_the_nearest_value_is_shown_and_legends_agree(browser, pages):
    page = browser.new_page(viewport={"width": 1440, "height": 900})
    page.goto(f"file://{pages['one']}")
    plot = page.get_by_role("group", name="share of the power that is kept")
    plot.scroll_into_view_if_needed()
    box, axes = plot.bounding_box(), plot.evaluate("e => JSON.parse(e.querySelector('script').textContent).box")
    width = plot.evaluate("e => e.querySelector('svg').viewBox.baseVal.width")
    place = (axes[0] + 0.22 * axes[2]) / width  # from 2 to 8: of 2.6, which is nearer to 2, and on a linear axis of 3.3
    page.mouse.move(box["x"] + place * box["width"], box["y"] + 0.5 * box["height"])
    assert plot.locator(".tip div").first.text_content() == "period of the oscillation, in steps 2"
    raw = page.get_by_role("button", name="raw", exact=True)
    assert raw.count() == 2  # of the curves, and of the oscillations
    raw.last.click()
    assert [button.get_attribute("aria-pressed") for button in raw.all()] == ["false", "false"]
    page.close()


def test_what_is_printed_is_black_on_white_though_the_screen_is_dark(browser, pages, tmp_path):
    page = browser.new_page(viewport={"width": 1440, "height": 900}, color_scheme="dark")
    page.goto(f"file://{pages['one']}")
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert {picture["ink"] for picture in page.evaluate(PICTURES)} == {"rgb(0, 0, 0)"}
    page.pdf(path=tmp_path / "page.pdf")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
    page.close()
