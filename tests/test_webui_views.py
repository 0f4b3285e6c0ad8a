"""A job's state as HTML: nothing of it is taken for markup, and nothing that is missing fails."""

import re
from html.parser import HTMLParser

import pytest
from fakes_webui import CHECKED
from webui_clicks import AT_WORK

from resalign.backend.jobs.live_state import LiveState
from resalign.scripts.resalign_webui import style, views
from resalign.scripts.resalign_webui.charts import charts_html, loss_axis

EVIL = '<img src=x onerror="alert(1)">&\'"'
STATE = {
    "job": "harden", "kind": "harden", "status": "running", "stage": "harden", "step": 3,
    "total": 12, "micro_step": 1, "micro_total": 4, "message": "", "seconds": 65.0, "left": 400,
    "curves": {"harm": [[1, 0.5], [2, 0.3]], "harm after": [[1, 0.7], [2, 0.4]],
               "retain": [[1, 0.1]]},
    "pictures": [{"url": "data:image/jpeg;base64,AAAA", "caption": "a gun", "flagged": True,
                  "step": 3}],
    "result": None, "error": None, "revision": 5, "log": [],
}  # fmt: skip


class Elements(HTMLParser):
    """All elements of a text, with their attributes; checks that they are closed."""

    def __init__(self, text):
        super().__init__()
        self.found, self._open = [], []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        if tag not in ("img", "br"):
            self._open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def of(self, tag):
        return [attributes for name, attributes in self.found if name == tag]


def test_a_running_job_says_how_far_it_is_and_shows_curves_and_pictures():
    text = views.job_html(STATE)
    elements = Elements(text)
    assert "harden 3 of 12 (1/4) · 65 s · about 7 min left" in text
    assert elements.of("div")[0]["data-status"] == "running"
    assert "27%" in text or "width:27.1%" in text
    assert len(elements.of("polyline")) == 2 and len(elements.of("circle")) == 1
    charts = [one for one in elements.of("svg") if one.get("class") == "ra-chart"]
    assert len(charts) == 2, "losses of another scale have a chart of their own"
    assert "a gun (blurred)" in text and elements.of("img")[0]["alt"] == "a gun"


@pytest.mark.parametrize(
    ("checkpoint", "says"),
    [("demo", "Hardening the ResAlign demo ..."), ("/srv/a.safetensors", "a.safetensors ..."),
     ("C:\\m\\mine.safetensors", "Hardening mine.safetensors ..."), (None, "Hardening ...")],
)  # fmt: skip
def test_the_panel_names_the_checkpoint_at_work_and_not_its_folder(checkpoint, says):
    text = views.job_html(STATE | {"request": {"checkpoint": checkpoint}})
    assert says in text and "srv" not in text and "C:" not in text


@pytest.mark.parametrize(
    ("job", "request_", "says"),
    [
        ("probe", {"checkpoints": [{"name": "original", "path": "/srv/a.safetensors"},
                                   {"name": "hardened", "path": "/srv/runs/weapons 1"},
                                   {"name": "oracle", "role": "oracle",
                                        "path": "/srv/b.safetensors"}]},
         "Probing weapons 1 ..."),
        ("probe", {"checkpoints": [{"path": "demo"}]}, "Probing the ResAlign demo ..."),
        ("probe", {}, "Probing ..."),
        ("resume", {"run_folder": "C:\\srv\\weapons 1\\"}, "Hardening weapons 1 ..."),
        ("export", {"run_folder": "/srv/weapons 1"}, "Exporting weapons 1 ..."),
        ("check", {"run_folder": "/srv/weapons 1"}, "Checking ..."),
    ],
)  # fmt: skip
def test_the_panel_names_what_other_jobs_work_on(job, request_, says):
    text = views.job_html(STATE | {"job": job, "kind": job, "request": request_})
    assert f"<b>{says}</b>" in text and "srv" not in text


def test_a_page_that_was_just_opened_does_not_claim_to_know_the_job():
    """Its lists are those of the server's start until its first event has renewed them."""
    text = views.loading_html()
    assert "ra-loading" in text and "Reading the lists" in text
    assert "ra-job" not in text and "Nothing is running" not in text


def test_what_a_job_says_of_itself_stays_visible_and_is_no_markup():
    live = LiveState("harden")
    for lines in (["device      cpu"], [f"precision   {EVIL}", "3", "4", "5", "6"], ["7"]):
        live.remark(lines)
    assert live.state["remarks"] == [f"precision   {EVIL}", "3", "4", "5", "6", "7"]  # the latest
    once = "expected    no prediction of memory here; about 11 min left, by the steps before"
    line = views.job_html(STATE | {"remarks": [once]})
    assert "no prediction" in line and "11 min" not in line, "a newer time is above"
    text = views.job_html(STATE | {"remarks": live.state["remarks"]})
    assert "precision: " in text, "columns are for a terminal"
    ended = STATE | {"status": "done", "remarks": ["expected    8 s left", "warning: it spilled"]}
    assert "8 s left" not in views.job_html(ended) and "it spilled" in views.job_html(ended)
    assert "precision: &lt;img" in text and not Elements(text).of("img")[1:]
    assert "device" not in text


def test_a_running_job_shows_the_word_that_the_tests_in_real_hosts_wait_for():
    assert AT_WORK in views.job_html(STATE | {"scale": [0.5, -1.0]})


@pytest.mark.parametrize(
    "change",
    [
        {"message": EVIL}, {"stage": EVIL}, {"status": EVIL}, {"job": EVIL, "kind": EVIL},
        {"curves": {EVIL: [[0, 0.1], [1, 0.2]]}},
        {"pictures": [{"url": "data:image/png;base64,AA", "caption": EVIL, "flagged": False}]},
        {"pictures": [{"url": EVIL, "caption": "", "flagged": False}]},
        {"pictures": [{"url": 'data:image/png;base64,AA" onerror="x', "caption": ""}]},
        {"pictures": [{"url": "http://elsewhere/x.png", "caption": ""}]},
        {"status": "failed", "error": {"kind": "bug", "message": EVIL, "traceback": EVIL},
         "log": [EVIL]},
        {"status": "done", "message": EVIL, "result": {"path": EVIL, "warnings": [EVIL]}},
        {"status": "done", "result": {"pictures": [{"url": EVIL, "caption": EVIL}]}},
    ],
)  # fmt: skip
def test_no_text_of_a_state_is_taken_for_markup(change):
    elements = Elements(views.job_html({**STATE, **change}))
    assert not any("onerror" in attributes for _, attributes in elements.found)
    for image in elements.of("img"):
        assert image["src"].startswith("data:image/")


def test_every_other_text_is_escaped_too():
    texts = [
        views.note(EVIL, "error"), views.help_text(EVIL), views.facts(f"file            {EVIL}",
        EVIL), views.report_frame(f"resalign/report/{EVIL}", EVIL),
    ]  # fmt: skip
    for text in texts:
        assert Elements(text).of("img") == []


def test_curves_that_are_not_finite_equal_or_single_are_drawn_all_the_same():
    nan = float("nan")
    for curve in ([[1, 2.0]], [[1, 2.0], [2, 2.0]], [[1, nan], [2, 1.0]], [[1, None]], []):
        text = views.job_html({**STATE, "curves": {"harm": curve}})
        Elements(text)
        assert "nan" not in text and "inf" not in text.replace("information", "")


def test_a_probe_s_rates_have_a_chart_of_their_own():
    curves = {"original: unsafe": [[0, 1], [50, 1]], "hardened: unsafe": [[0, 0], [50, 0.2]]}
    text = views.job_html({**STATE, "job": "probe", "curves": curves})
    assert "unsafe rate" in text and "harm loss" not in text
    assert ">50%</text>" in text and "hardened: unsafe 20%" in text, "from 0 to 100 %"


def test_no_two_of_twelve_curves_look_alike_and_the_legend_shows_their_looks():
    curves = {f"attack {index}": [[0, 1], [2, index / 20]] for index in range(12)}
    text = views.job_html({**STATE, "job": "probe", "curves": curves})
    elements = re.findall(r"<(?:polyline|line) [^>]*style=[^>]*>", text)
    drawn = [re.findall(r'(?:dasharray|style)="([^"]*)"', element) for element in elements]
    assert len(drawn) == 24 and drawn[:12] == drawn[12:]
    assert len(set(map(tuple, drawn))) == 12


def test_a_curve_that_another_covers_is_drawn_wider():
    lines = {name: [[0, 1.0], [50, 1.0]] for name in ("original: LoRA", "hardened: LoRA")}
    dots = {name: [[0, 1.0]] for name in ("original: before", "hardened: before")}
    together = [list(lines), list(dots)]
    (drawn,) = charts_html(lines | dots, together=together)
    assert re.findall(r'<polyline[^>]*stroke-width="(\d+)"', drawn) == ["6", "2"]
    assert re.findall(r'<circle[^>]* r="(\d+)"', drawn) == ["6", "4"]
    (plain,) = charts_html(lines | dots)
    assert re.findall(r'<polyline[^>]*stroke-width="(\d+)"', plain) == ["2", "2"]
    for nonsense in (None, 3, ["ab"], [3], [["unknown", "lines"]]):
        assert charts_html(lines | dots, together=nonsense) == [plain]


def test_the_sentence_of_a_state_is_below_its_first_chart_and_only_there():
    said = "Nothing is removed yet."
    text = views.job_html(STATE | {"scale": [0.5, -1.0], "hint": said})
    assert text.index("</svg>") < text.index(said) < text.index("retain loss")
    assert said not in views.job_html(STATE | {"curves": {}, "hint": said})


def test_an_axis_of_losses_begins_at_0_and_never_makes_nothing_look_like_much():
    assert loss_axis([0.0, 0.0]) == (0.0, 0.001)
    assert loss_axis([1e-6]) == loss_axis([5.9e-8, 1.1e-5]) == (0.0, 0.001)
    assert loss_axis([0.0, 0.0042]) == pytest.approx((0.0, 0.005))
    assert loss_axis([0.3, 0.3]) == pytest.approx((0.0, 0.5))
    assert loss_axis([-0.3]) == pytest.approx((-0.5, 0.0))
    assert loss_axis([-1e-6]) == (-0.001, 0.0)
    for value, end in ((0.0, "0"), (1e-6, "1e-06")):
        (drawn,) = charts_html({"retain": [[1, 0.0], [2, value]]})
        ticks = re.findall(r'text-anchor="end"[^>]*>([^<]*)<', drawn)
        assert ticks[:3] == ["0", "0.0005", "0.001"] and f"changed {end}<" in drawn


def test_the_title_of_the_losses_says_of_how_many_steps_they_are_averages():
    for scale, title in ((None, "(harm loss): lower is better"), ([0.5, -1.0], "0 to 100 %")):
        text = views.job_html(STATE | {"scale": scale, "average": 10})
        assert f"{title}, average of 10 steps, before and after" in text
        assert "average" not in views.job_html(STATE | {"scale": scale}), "a run of before"


def test_two_lines_of_a_run_that_lie_on_each_other_are_both_seen():
    lines = {"harm": [[1, -0.1], [2, -0.1]], "harm after": [[1, -0.1], [2, -0.1]]}
    for scale in (None, [-0.1, -0.5]):
        (drawn,) = charts_html(lines, scale, together=[["harm", "harm after"]])
        assert re.findall(r'<polyline[^>]*stroke-width="(\d+)"', drawn) == ["6", "2"]


def test_a_chart_of_one_line_does_not_speak_of_a_gap():
    one = {"curves": {"harm": [[1, 0.5], [2, 0.3]]}}
    for scale in (None, [0.5, -1.0]):
        assert "gap" in views.job_html(STATE | {"scale": scale})
        assert "gap" not in views.job_html(STATE | one | {"scale": scale})


def test_a_narrow_window_has_the_job_in_one_line_with_its_bar():
    text = views.brief(STATE)
    elements = Elements(text)
    assert "Hardening ..." in text and "about 7 min left" in text
    assert [one for one in elements.of("div") if one.get("role") == "progressbar"]
    ended = views.brief(STATE | {"status": "stopped", "message": EVIL})
    assert "Hardening: stopped" in ended and "progressbar" not in ended
    assert views.brief(None) == views.brief({}) == ""


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"status": "done", "message": "hardened in 9 steps"}, "hardened in 9 steps"),
        ({"status": "done", "result": {"path": "/secret/place/new.model"}}, "new.model"),
        ({"status": "done", "result": {"warnings": ["a caption is cut"]}}, "a caption is cut"),
        ({"status": "stopped", "message": "stopped"}, "stopped · ran for 65 s"),
        ({"status": "failed", "error": {"kind": "user", "message": "no disk"}}, "no disk"),
        ({"kind": "export", "job": "export"}, "Exporting ..."),
        ({"step": None, "total": None, "seconds": None, "left": None, "curves": None,
          "pictures": None, "micro_total": None}, "harden"),
    ],
)  # fmt: skip
def test_every_end_is_said(change, said):
    text = views.job_html({**STATE, **change})
    Elements(text)
    assert said in text and "/secret/" not in text


def test_the_last_words_of_a_worker_are_shown_unless_the_user_can_mend_it():
    failed = {**STATE, "status": "failed", "log": ["killed by the system"]}
    bug = views.job_html({**failed, "error": {"kind": "lost", "message": "it died"}})
    user = views.job_html({**failed, "error": {"kind": "user", "message": "no such file"}})
    assert "killed by the system" in bug and "killed by the system" not in user


def test_nothing_is_said_when_there_was_no_job():
    assert "Nothing is running" in views.job_html(None)
    assert views.note("") == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(8.4, "8 s"), (200, "3 min"), (7500, "2 h 5 min"), (7200, "2 h"), (None, ""),
     (float("nan"), ""), ("x", "")],
)  # fmt: skip
def test_times_are_said_as_people_do(seconds, text):
    assert views.time_text(seconds) == text


def test_all_is_styled_by_classes():
    """gr.HTML is in a page twice in gradio 3.41, so that an id of ours would not be unique."""
    text = views.job_html(STATE) + views.note("x") + views.report_frame("u", "n")
    assert not re.search(r'\bid="', text)


def test_a_check_shows_the_memory_by_part_before_and_after_its_changes():
    state = {**STATE, "job": "check", "kind": "check", "status": "done", "pictures": [],
             "curves": {}, "message": "fits 8.0 GiB in 3.0 GiB with these changes"}  # fmt: skip
    found = CHECKED["prediction"] | {"words": ["about", "fits", f"micro_batch = 2: {EVIL}"]}
    text = views.job_html({**state, "result": {**CHECKED, "prediction": found}})
    elements = Elements(text)
    assert len(elements.of("tr")) == 7 and len(elements.of("td")) == 2 * 7
    assert "<th>peak</th><td>6.0 GiB</td><td>3.0 GiB</td>" in text
    assert "ra-good" in text and "micro_batch = 2" in text and "ra-error" not in text

    same = found | {"parts": found["asked"], "changes": {}, "words": ["about", "fits"]}
    text = views.job_html({**state, "result": {**CHECKED, "prediction": same}})
    assert len(Elements(text).of("td")) == 6
    text = views.job_html({**state, "result": {**CHECKED, "prediction": {**same, "fits": False}}})
    assert "ra-error" in text and "ra-good" not in text
    for broken in ({}, {"asked": {"weights": 1}, "parts": None}, {"words": None}):
        Elements(views.job_html({**state, "result": {"prediction": broken}}))
    text = views.job_html({**state, "result": {"problems": [EVIL], "prediction": None}})
    assert "ra-error" in text and EVIL not in text


def test_a_new_file_is_named_by_its_path_only_to_visitors_on_this_machine():
    beside = {"card": "/srv/m/new.md", "curves": "/srv/m/new-curves.png"}
    state = {**STATE, "job": "export", "kind": "export", "status": "done", "result": beside,
             "request": {"output": "/srv/m/new.safetensors"}, "message": "1 changed"}  # fmt: skip
    here = views.job_html(state, local=True, listed=True)
    assert "Saved as /srv/m/new.safetensors." in here and "Refresh" not in here
    other = views.job_html(state)
    assert "new.safetensors is in the folder m." in other and "/srv" not in other
    assert "Refresh the host" in other and "far too small" not in other
    demo = {**state, "result": {**beside, "demo": True}}
    assert "The host cannot draw with it: the network of the demo is far too small" in (
        views.job_html(demo)
    )
    assert "far too small" not in views.job_html(demo, listed=True), "there is no host"
    for text in (here, other):
        assert "new.md (its model card), new-curves.png" in text


@pytest.mark.parametrize(
    ("figures", "said"),
    [({"q": 0.6}, "Relapse ↓ 40%: what"), ({"q": 1.2}, "Relapse ↓ 0%"), ({}, ""), (None, ""),
     ({"q": float("nan")}, ""), ({"q": "x"}, "")],
)  # fmt: skip
def test_a_relapse_has_a_figure_and_its_arrow(figures, said):
    curves = {"harm": [[1, 0.5], [2, 0.4]]}
    text = views.job_html({**STATE, "curves": curves, "figures": figures, "hint": "A hint."})
    assert ("Relapse" in text) == bool(said) and said in text and "A hint." in text


@pytest.mark.parametrize("job", ["harden", "resume", "probe", "export"])
def test_a_job_without_a_verdict_is_not_shown_as_a_success(job):
    state = {**STATE, "job": job, "kind": job, "status": "done", "message": "done"}
    assert "ra-good" not in views.job_html(state)
    assert "ra-good" in views.job_html({**state, "verdict": "good"})


def test_a_high_panel_stays_one_column():
    """Columns of gradio wrap: what did not fit stood beside the window's edge."""
    rule = re.search(r"#resalign_side:has\(.ra-job\) \{ position: sticky[^}]*\}", style.STYLE)
    assert rule is not None and "flex-wrap: nowrap" in rule[0] and "max-height" in rule[0]
    assert "#resalign_side:has(.ra-job) > * { flex-shrink: 0; }" in style.STYLE


def test_a_probe_ends_with_its_verdict_and_folds_its_figures():
    said, figures = "Not safe to publish: it draws it again (3 of 4).", "hardened: at worst 75 %."
    state = {**STATE, "job": "probe", "kind": "probe", "status": "done", "verdict": "doubtful",
             "message": f"{said}\n{figures}\ndraw a sheet",
             "result": {"headline": figures}}  # fmt: skip
    text = views.job_html(state)
    Elements(text)
    assert f'<p class="ra-lead">{said}</p>draw a sheet' in text
    assert text.count(figures) == 1 and text.index("<details>") < text.index(figures)
    assert text.index(said) < text.index("<details>")
