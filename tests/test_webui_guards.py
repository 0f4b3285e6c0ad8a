"""Guards and explanations of the page, built with a gradio and a starlette of our own."""

import asyncio
import sys
import types

import fakes_gradio
import pytest
from fakes_webui import FakeHost, FakeJobs, host_with_a_checkpoint

from resalign.scripts.resalign_webui import routes
from resalign.scripts.resalign_webui.host import ALONE, probes_folder

OWN = {"host": "127.0.0.1:7860", "origin": "http://127.0.0.1:7860"}
FOREIGN = {"host": "127.0.0.1:7860", "origin": "http://evil.example"}


@pytest.fixture
def load(monkeypatch):
    yield lambda name: fakes_gradio.load(monkeypatch, name)
    fakes_gradio.forget()


def test_every_event_that_is_bound_refuses_another_page(load, tmp_path):
    parts, done, bound = load("parts"), [], []
    parts.on(lambda *given: bound.extend(given), done.append, host=FakeHost(tmp_path))
    call = bound[0]
    call(types.SimpleNamespace(request=object(), headers=OWN, username=None), 1)
    foreign = types.SimpleNamespace(request=object(), headers=FOREIGN, username=None)
    with pytest.raises(sys.modules["gradio"].Error, match="another page"):
        call(foreign, 2)
    assert done == [1]


def test_events_are_bound_by_nothing_else(package_folder):
    """An event that is bound directly would be open to every page."""
    folder = package_folder / "scripts" / "resalign_webui"
    for path in folder.glob("*.py"):
        text = path.read_text(encoding="utf-8")
        for name in ("click", "change", "select", "then", "input", "submit", "upload"):
            assert f".{name}(" not in text, f"{path.name} binds {name} without `on`"


class Answer:
    def __init__(self, content=None, status_code=200, **options):
        self.content, self.status = content, status_code


@pytest.fixture
def served(monkeypatch, tmp_path):
    """The answer of a route, by its path, to a request with some headers."""
    for name, kinds in (("responses", ("FileResponse", "JSONResponse", "Response")),
                        ("routing", ("Route",))):  # fmt: skip
        module = types.ModuleType(f"starlette.{name}")
        for kind in kinds:
            setattr(module, kind, Answer)
        monkeypatch.setitem(sys.modules, f"starlette.{name}", module)
    made = sys.modules["starlette.routing"]
    made.Route = lambda path, endpoint, methods: types.SimpleNamespace(path=path, call=endpoint)
    host = FakeHost(tmp_path)
    folder = probes_folder(host) / "one"
    folder.mkdir(parents=True)
    (folder / "probe.json").write_text("{}")
    (folder / "report.html").write_text("")
    jobs = FakeJobs()
    jobs._state = {"job": "harden", "kind": "harden", "status": "running", "revision": 3}
    app = types.SimpleNamespace(router=types.SimpleNamespace(routes=[]))
    routes.register(app, host, jobs)

    def ask(path, headers, **state):
        jobs._state.update(state)
        request = types.SimpleNamespace(
            headers=headers, cookies={}, path_params={"probe": "one", "file": "report.html"}
        )
        (route,) = [route for route in app.router.routes if route.path.startswith(path)]
        return asyncio.run(route.call(request))

    return ask


@pytest.mark.parametrize("path", ["/resalign/state", "/resalign/report"])
def test_a_route_refuses_another_page(served, path):
    assert served(path, OWN).status == 200
    assert served(path, FOREIGN).status == 403
    assert served(path, {"host": "evil.example"}).status == 403
    assert served(path, {**OWN, "Sec-Fetch-Site": "cross-site"}).status == 403


@pytest.mark.parametrize(
    ("job", "waits"),
    [
        ("harden", True), ("probe", True), ("try_lora", True), ("export", True),
        ("audit", False), ("pack", False), ("check", False),
    ],
)  # fmt: skip
def test_the_page_learns_whether_the_hosts_pictures_wait(served, job, waits):
    """They do not while a job is at work beside the host."""
    found = served("/resalign/state", OWN, job=job, kind=job).content
    assert found["waits"] is waits and found["host"] == "A1111"
    assert set(found["resumed"]) == {"harden", "resume", "probe"}
    found = served("/resalign/state", OWN, job=job, status="done").content
    assert found["waits"] is False


def page(load, host, actions, name):
    pages = load("pages")
    parts = sys.modules[f"{fakes_gradio.OURS}.parts"].Parts()
    getattr(pages, name)(parts, host, actions.choices())
    return parts, {one.elem_id: one for one in fakes_gradio.MADE if one.elem_id}


@pytest.mark.parametrize(("name", "message"), [
    ("harden_page", "harden"), ("probe_page", "probe"), ("lora_page", "lora"),
    ("export_page", "export"),
])  # fmt: skip
def test_before_a_start_it_is_said_that_pictures_will_wait(load, tmp_path, name, message):
    host, actions = host_with_a_checkpoint(tmp_path)
    _, made = page(load, host, actions, name)
    said = made[f"resalign_{message}_message"].value
    assert "While it runs, pictures of A1111 wait." in said
    host.name = ALONE
    _, made = page(load, host, actions, name)
    assert made[f"resalign_{message}_message"].value == "", "it draws none"


@pytest.mark.parametrize(("name", "field"), [
    ("harden_page", "concepts"), ("probe_page", "probe_concepts"),
])  # fmt: skip
def test_concepts_are_offered_as_people_write_them(load, tmp_path, name, field):
    parts, _ = page(load, *host_with_a_checkpoint(tmp_path), name)
    choices = parts[field].options["choices"]
    assert ("hate symbols", "hate_symbols") in choices
    assert all("_" not in label for label, _ in choices)
