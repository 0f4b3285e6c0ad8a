"""Texts of the ComfyUI widgets meet WCAG AA (4.5 to 1) and their lines 3 to 1, on both palettes."""

import re

import pytest

# --comfy-input-bg, --input-text, --descrip-text of ComfyUI's own dark and light palette.
PALETTES = {"dark": ("#222222", "#dddddd", "#999999"), "light": ("#c9c9c9", "#222222", "#444444")}


def channels(colour):
    return [int(colour[start : start + 2], 16) for start in (1, 3, 5)]


def mixed(one, share, other):
    """CSS color-mix(in srgb, one share, other)."""
    return [
        share * a + (1 - share) * b for a, b in zip(channels(one), channels(other), strict=True)
    ]


def luminance(colour):
    parts = [c / 255 for c in colour]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one, other):
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.fixture(scope="module")
def style(root):
    text = (root / "web" / "resalign.js").read_text(encoding="utf-8")
    return re.search(r"const STYLE = `(.*?)`;", text, re.S).group(1)


def test_black_on_white_is_21_to_1():
    assert contrast([0, 0, 0], [255, 255, 255]) == pytest.approx(21)


@pytest.mark.parametrize("palette", PALETTES)
def test_no_text_and_no_line_is_hard_to_read(style, root, palette):
    paper, text, quiet = PALETTES[palette]
    paper = channels(paper)
    words = re.findall(r"--ra-\w+: color-mix\(in srgb, (#\w{6}) (\d+)%, var\(--input-text", style)
    assert len(words) == 3
    for colour, share in words:
        assert contrast(mixed(colour, int(share) / 100, text), paper) >= 4.5, colour
    (share,) = re.findall(r"var\(--descrip-text, #999\) (\d+)%", style)
    assert contrast(mixed(quiet, int(share) / 100, text), paper) >= 4.5
    drawing = (root / "web" / "resalign_view.js").read_text(encoding="utf-8")
    lines = re.findall(r"#\w{6}", re.search(r"COLOURS = \[(.*?)\]", drawing).group(1))
    bars = re.findall(r"background: color-mix\(in srgb, (#\w{6}) 60%", style)
    assert len(lines) == 6 and len(bars) == 4
    for colour in (*lines, *bars):
        assert contrast(mixed(colour, 0.6, text), paper) >= 3, colour


def test_every_colour_of_a_text_is_one_of_those(style):
    """A plain colour is right on one palette at most."""
    found = re.findall(r"(?<![-\w])color: ([^;}]+)[;}]", style)
    assert found and all(one.strip().startswith("var(--") for one in found), found


# --background-fill-primary, --body-text-color, --border-color-primary of gradio 3.41 (as in A1111
# and reForge), 4.40 (Forge) and 6: dark and light.
TABS = {
    "3.41 dark": ("#0b0f19", "#f3f4f6", "#374151"), "3.41 light": ("#ffffff", "#1f2937", "#e5e7eb"),
    "6 dark": ("#18181b", "#f4f4f5", "#3f3f46"), "6 light": ("#ffffff", "#27272a", "#e4e4e7"),
}  # fmt: skip


@pytest.mark.parametrize("theme", TABS)
def test_the_tab_s_quiet_texts_and_its_bar_can_be_seen_in_both_themes(root, theme):
    paper, text, track = TABS[theme]
    style = (root / "scripts/resalign_webui/style.py").read_text(encoding="utf-8")
    (quiet,) = re.findall(r"--quiet: color-mix\(in srgb, var\(--body-text-color\) (\d+)%", style)
    assert contrast(mixed(text, int(quiet) / 100, paper), channels(paper)) >= 4.5
    shares = re.findall(r"color-mix\(in srgb, var\(--fill\) (\d+)%", style)
    fills = re.findall(r"--fill: (#\w{6})", style)
    assert len(shares) == 1 and len(fills) == 4
    for fill in fills:
        assert contrast(mixed(fill, int(shares[0]) / 100, text), channels(track)) >= 3, fill
    drawing = (root / "scripts/resalign_webui/charts.py").read_text(encoding="utf-8")
    hues = re.findall(r"#\w{6}", re.search(r"_HUES = \((.*?)\)", drawing).group(1))
    assert len(hues) == 6 and "{hue} 65%" in drawing
    for hue in hues:
        assert contrast(mixed(hue, 0.65, text), channels(paper)) >= 3, hue
    for opacity in re.findall(r"opacity: \.(\d+); font-size", style):
        assert contrast(mixed(text, int(opacity) / 100, paper), channels(paper)) >= 4.5
