"""The page of a probe: what a browser gets, and what it does with it."""

import base64
import io
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from fakes_probe import fake_plan, fake_result, report_fixtures
from PIL import Image

from resalign.backend.report.build import write_report
from resalign.backend.report.curves import SERIES, Curve, curve_svg
from resalign.backend.report.grids import picture_section
from resalign.backend.report.markup import Markup, tag
from resalign.backend.report.page import report_html
from resalign.backend.report.pictures import LONGEST, Album
from resalign.backend.report.plots import LIGHT
from resalign.backend.report.view import View

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"' & {{x}}"


class Page(HTMLParser):
    """Every element of a page, in order, and what is never closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.feed(text)

    def handle_starttag(self, name, attrs):
        self.elements.append((name, {key: value or "" for key, value in attrs}))
        if name not in ("meta", "img", "br", "hr", "input"):
            self.open.append(name)

    def handle_startendtag(self, name, attrs):
        self.elements.append((name, {key: value or "" for key, value in attrs}))

    def handle_endtag(self, name):
        if not self.open or self.open.pop() != name:
            self.wrong.append(name)

    def all(self, name, cls=""):
        return [
            attrs
            for found, attrs in self.elements
            if found == name and (not cls or cls in attrs.get("class", "").split())
        ]


folder, result, text = report_fixtures()


@pytest.fixture(scope="module")
def page(text):
    return Page(text)


def test_the_page_is_well_formed_and_its_ids_are_unique(page):
    assert page.open == [] and page.wrong == []
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids)) and len(ids) > 10
    for attrs in page.all("a"):
        assert attrs["href"].removeprefix("#") in ids


def test_drawings_refer_to_nothing_and_every_link_leads_somewhere(text, page):
    ids = {attrs["id"] for _, attrs in page.elements if "id" in attrs}
    links = {attrs["href"] for attrs in page.all("a")}
    assert links and links <= {f"#{name}" for name in ids}
    drawings = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert len(drawings) > 5
    assert not any(re.search(r"\bid=|url\(|href=", drawing) for drawing in drawings)


def test_the_page_needs_no_network(text, page):
    for name, attrs in page.elements:
        for key in ("src", "data-src", "href", "xlink:href", "action", "srcset"):
            if key in attrs:
                assert attrs[key].startswith(("data:", "#")), (name, key, attrs[key][:60])
    assert not re.search(r"@import|url\((?!#)", text)
    assert page.all("link") == [] and [attrs for attrs in page.all("script") if attrs] == []
    (policy,) = [a["content"] for a in page.all("meta") if "http-equiv" in a]
    assert "default-src 'none'" in policy and "script-src 'sha256-" in policy


def test_the_parts_come_in_the_order_that_a_reader_needs(text):
    places = [text.index(f'id="{name}"') for name in (
        "matrix", "curves", "pictures", "utility", "paired", "plan", "limits"
    )]  # fmt: skip
    assert places == sorted(places)
    assert text.index("Resilience 0.") < places[0]


def test_tables_have_header_cells_and_pictures_have_words(page, text):
    heads = page.all("th")
    assert heads and all(attrs.get("scope") in ("col", "row") for attrs in heads)
    for attrs in page.all("img"):
        assert attrs.get("alt") or attrs["class"] == "veil"
    for attrs in page.all("svg", "curve"):
        assert attrs["role"] == "img"
    for title, description in re.findall(r"<svg role[^>]*><title>(.*?)</title><desc>(.*?)<", text):
        assert title.startswith(("Unsafe rate under", "Benign quality under"))
        assert "before" in description
    assert text.count("</desc>") == len(page.all("svg", "curve")) == 4
    for attrs in page.all("button"):
        assert attrs["type"] == "button"


def test_each_model_has_its_worst_attack_marked_once(text):
    assert text.count('class="rate worst"') == 3


def test_a_flagged_picture_is_not_in_the_page_as_a_picture(page):
    """Without its script, in print or in a reader's view, only the veil can be seen."""
    flagged = page.all("button", "flagged")
    veils, real = page.all("img", "veil"), page.all("img", "real")
    assert len(flagged) == len(veils) == len(real) > 10
    assert all("src" not in attrs and "hidden" in attrs for attrs in real)
    for attrs in veils:
        data = base64.b64decode(attrs["src"].split(",")[1])
        with Image.open(io.BytesIO(data)) as veil:
            assert max(veil.size) <= 10


def test_what_any_scorer_flags_is_veiled(result, folder):
    plan = replace(fake_plan(), scorers=fake_plan().scorers[:1])
    evaluations = []
    for evaluation in result.evaluations:
        unsafe = evaluation.sets[0]
        second = replace(unsafe.scores[0], scorer="second", flagged=(True,) * unsafe.images)
        evaluations.append(
            replace(evaluation, sets=(replace(unsafe, scores=(*unsafe.scores, second)),))
        )
    page = Page(report_html(replace(result, evaluations=tuple(evaluations), plan=plan), folder))
    assert page.all("img", "veil") and not [a for a in page.all("img") if "class" not in a]


def test_the_words_above_the_pictures_say_what_is_blurred(result, folder, text):
    """A click is explained only where something can be clicked."""
    click, none, unjudged = "click one to show it", "No scorer flagged any", "No scorer judged what"
    assert click in text and none not in text and unjudged not in text

    def changed(each, scores):
        sets = tuple(replace(part, scores=tuple(map(scores, part.scores))) for part in each.sets)
        return replace(each, sets=sets)

    def clean(score):
        return replace(score, flagged=(False,) * len(score.flagged))

    safe = tuple(changed(each, clean) for each in result.evaluations)
    said = report_html(replace(result, evaluations=safe), folder)
    assert none in said and click not in said
    blind = tuple(
        replace(each, sets=tuple(replace(part, scores=()) for part in each.sets)) for each in safe
    )
    parts = picture_section(View(replace(result, evaluations=blind)), Album(folder))
    assert parts and unjudged in parts and click not in parts


def test_pictures_are_small_and_the_page_too(text, page, result):
    assert len(text) < 3_000_000
    for attrs in page.all("img"):
        data = base64.b64decode(attrs.get("data-src", attrs.get("src", "")).split(",")[1])
        with Image.open(io.BytesIO(data)) as picture:
            assert max(picture.size) <= LONGEST


def test_the_budget_leaves_pictures_out_and_counts_them(folder, result):
    names = result.evaluations[0].sets[0].pictures
    album = Album(folder, budget=1)
    assert album.shot(names[0]) is not None
    assert album.shot(names[1]) is None and album.beyond_budget == 1 and album.missing == 0


@pytest.mark.parametrize("kind", ["missing", "broken", "outside", "no folder"])
def test_a_picture_that_cannot_be_had_is_a_placeholder(tmp_path, kind):
    outside = tmp_path / "secret.png"
    Image.new("RGB", (8, 8)).save(outside)
    inner = tmp_path / "probe"
    inner.mkdir()
    (inner / "broken.png").write_bytes(b"\x89PNG nonsense")
    name = {"broken": "broken.png", "outside": "../secret.png"}.get(kind, "gone.png")
    album = Album(None if kind == "no folder" else inner)
    assert album.shot(name) is None and album.missing == 1


def test_a_probe_whose_pictures_are_gone_still_has_its_page(result, tmp_path):
    text = report_html(result, tmp_path)
    assert "no picture" in text and "are not in the probe" in text
    assert "data:image" not in text


def test_users_words_never_become_elements(tmp_path):
    """A prompt list from the net may hold anything; so may names of models and attacks."""
    plan = fake_plan()
    merges = (replace(plan.merges[0], name=HOSTILE),)
    plan = replace(plan, merges=merges)
    made = fake_result(tmp_path, plan=plan, models=("original", f"m {HOSTILE}"))
    prompts = {kind: (HOSTILE,) * len(texts) for kind, texts in made.prompts.items()}
    hostile = replace(made, prompts=prompts, warnings=(HOSTILE,))

    text = report_html(hostile, tmp_path)

    page = Page(text)
    assert page.open == [] and page.wrong == []
    assert len(page.all("script")) == 1 and "onerror" not in {
        key for _, attrs in page.elements for key in attrs
    }
    assert "<img src=x" not in text and "&lt;script&gt;alert(1)" in text


def test_only_markup_passes_unescaped():
    assert tag("p", "<b>", Markup("<i></i>"), ["&", None, 3]) == "<p>&lt;b&gt;<i></i>&amp;3</p>"
    assert tag("a", title='"x" <y>', hidden=True, id=None) == (
        '<a title="&quot;x&quot; &lt;y&gt;" hidden></a>'
    )


def curve(index: int) -> Curve:
    return Curve(name=f"m{index}", index=index, steps=(0, 10), rates=(0.1, 0.5), lows=(0.0, 0.4),
                 highs=(0.2, 0.6))  # fmt: skip


def test_a_drawing_has_the_pages_colours_and_its_words_as_text():
    drawing = curve_svg([curve(0), curve(1)], "title", "label")
    assert "var(--series-0)" in drawing and "var(--series-1)" in drawing
    assert "fine-tuning step</text>" in drawing and "DejaVu" not in drawing
    assert not re.search(r"#[0-9a-fA-F]{3,6}\b|font|\bid=|url\(", drawing)
    assert (
        drawing.startswith('<svg role="img"')
        and "<title>title</title><desc>label</desc>" in drawing
    )
    assert curve_svg([curve(0), curve(1)], "title", "label") == drawing


def test_models_beyond_the_palette_differ_by_their_line():
    first, ninth = (curve_svg([curve(i)], "title", "label") for i in (0, SERIES))
    assert "var(--series-0)" in ninth and first != ninth


def contrast(one: str, other: str) -> float:
    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_words_and_lines_stand_out_in_both_themes(package_folder):
    """4.5 for words, 3 for lines, on the page and on panels; on the darkest cell of the matrix."""
    style = (package_folder / "backend/report/report.css").read_text(encoding="utf-8")
    blocks = [part.split("}")[0] for part in re.split(r":root[^{]*\{", style)[1:]]
    assert len(blocks) == 4
    assert blocks[1].split() == blocks[2].split(), "the two dark blocks must be the same"
    for block in blocks:
        names = dict(re.findall(r"--([\w-]+): ([^;]+);", block))
        for ground in ("paper", "panel"):
            for words in ("ink", "soft", "link"):
                assert contrast(names[words], names[ground]) >= 4.5, (words, ground, block)
            for i in range(SERIES):
                assert contrast(names[f"series-{i}"], names[ground]) >= 3, (i, ground)
        paper = [int(names["paper"][i : i + 2], 16) for i in (1, 3, 5)]
        bad = [int(part) for part in names["bad"].split()]
        cell = "#" + "".join(f"{(a + b) // 2:02x}" for a, b in zip(paper, bad, strict=True))
        assert contrast(names["ink"], cell) >= 4.5
    light = dict(re.findall(r"--(series-\d): ([^;]+);", blocks[0]))
    assert tuple(light.values()) == LIGHT, "the PNG has the page's colours"


@pytest.fixture
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("no chromium on this machine")
    with api.sync_playwright() as playwright:
        found = playwright.chromium.launch(
            executable_path=path,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        yield found
        found.close()


@pytest.mark.slow
def test_in_a_browser_the_page_behaves(browser, result, folder):
    """Narrow and wide, light and dark: no error, no request, nothing wider than the screen."""
    path = write_report(result, folder, pictures=folder).html
    for width, scheme in ((1280, "light"), (360, "dark")):
        context = browser.new_context(
            viewport={"width": width, "height": 800}, color_scheme=scheme, offline=True
        )
        page = context.new_page()
        said, asked = [], []
        page.on("console", lambda message, said=said: said.append(message.text))
        page.on("pageerror", lambda error, said=said: said.append(str(error)))
        page.on("request", lambda request, asked=asked: asked.append(request.url))
        page.goto(path.as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        before = page.evaluate("getComputedStyle(document.body).backgroundColor")
        page.click("#theme")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") != before

        pressed = page.locator("button.flagged[aria-pressed=true]")
        first = page.locator("button.flagged").first
        first.focus()
        page.keyboard.press("Enter")
        assert pressed.count() == 1 and first.locator(".real").is_visible()
        page.emulate_media(media="print")
        assert not first.locator(".real").is_visible(), "blurred stays blurred on paper"
        paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert paper == "rgb(255, 255, 255)"
        page.emulate_media(media="screen")
        first.click()
        assert pressed.count() == 0

        page.click("#show-all")
        assert pressed.count() == 0, "a second click must confirm it"
        page.click("#show-sure")
        assert pressed.count() == page.locator("button.flagged").count()
        page.click("#hide-all")
        assert pressed.count() == 0
        assert said == [] and all(url.startswith(("file:", "data:")) for url in asked)
        context.close()


@pytest.mark.slow
def test_in_a_browser_hostile_words_stay_words(browser, tmp_path):
    made = fake_result(tmp_path, models=("original", HOSTILE))
    prompts = {kind: (HOSTILE,) * len(texts) for kind, texts in made.prompts.items()}
    path = write_report(replace(made, prompts=prompts), tmp_path, pictures=tmp_path).html
    page = browser.new_context(offline=True).new_page()
    alerts = []
    page.on("dialog", lambda dialog: (alerts.append(dialog.message), dialog.dismiss()))
    page.goto(path.as_uri())
    assert alerts == [] and "alert(1)" in page.inner_text("main")


def test_cells_name_their_column_for_a_screen_on_which_rows_are_stacked(page, text):
    labels = {attrs["data-label"] for attrs in page.all("td") if "data-label" in attrs}
    assert {"original", "plain unlearning", "hardened", "SHA-256", "95 % interval"} <= labels
    matrix = text[text.index('id="matrix"') : text.index('id="relapse"')]
    assert matrix.count('data-label="hardened"') == matrix.count("<tr>") - 1


@pytest.mark.slow
def test_in_a_browser_nothing_is_cut_off(browser, result, folder):
    """No table but the pictures' scrolls on a phone, and at 1280 every SHA-256 is whole."""
    path = write_report(result, folder, pictures=folder).html
    wide = """() => [...document.querySelectorAll('.scroll')]
        .filter(e => e.offsetParent && e.scrollWidth > e.clientWidth + 1 && !e.closest('details'))
        .map(e => e.getAttribute('aria-label'))"""
    for width in (1280, 520, 400):
        page = browser.new_context(viewport={"width": width, "height": 900}).new_page()
        page.goto(path.as_uri())
        cut = [name for name in page.evaluate(wide) if not name.startswith("Pictures")]
        assert cut == [], width
        code = page.locator("td code").last.bounding_box()
        assert code["x"] + code["width"] <= width
        assert len(page.locator("td code").last.inner_text()) == 64
        rows = page.locator(".glance tbody tr")
        first = rows.first.locator("td").first  # is it safe?
        last = (rows.last if width == 1280 else first).bounding_box()
        assert last["y"] + last["height"] <= 800, "what a reader asks first is on the first screen"
        said = page.locator(".verdict").last.bounding_box()
        assert said["y"] + said["height"] <= 450, "the verdict comes before any figure"
        assert last["x"] + last["width"] <= width
    page = browser.new_context(viewport={"width": 560, "height": 900}).new_page()
    page.emulate_media(media="print")
    page.goto(path.as_uri())
    edges = page.evaluate("""() => [...document.querySelectorAll('table.pictures')]
        .map(e => e.getBoundingClientRect().right)""")
    assert edges and max(edges) <= 560, "nor are pictures on paper, however many the models"
