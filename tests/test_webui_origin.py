"""Requests of another site's page are refused; the tab itself and programs are served."""

import asyncio
import inspect
import types

import pytest

from resalign.scripts.resalign_webui import origin

OWN = {"host": "127.0.0.1:7860", "origin": "http://127.0.0.1:7860", "sec-fetch-site": "same-origin"}


class Request(types.SimpleNamespace):
    """gradio's."""


class Refused(Exception):
    """gradio's Error."""


@pytest.fixture(autouse=True)
def no_names(monkeypatch):
    monkeypatch.delenv(origin.HOSTS_VARIABLE, raising=False)


@pytest.mark.parametrize(
    "headers",
    [
        OWN,
        {"host": "localhost:7860", "origin": "http://localhost:7860"},
        {"host": "[::1]:7860", "origin": "http://[::1]:7860"},
        {"host": "127.0.0.1", "origin": "http://127.0.0.1:80"},
        {"host": "127.0.0.1:7860"},  # a program
        {"host": "127.0.0.1:7860", "sec-fetch-site": "none"},  # a bookmark
        {"host": "resalign.localhost:7860"},
    ],
)
def test_the_tab_and_programs_are_served(headers):
    assert origin.refusal(headers, local=True) == ""


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"}, {"origin": "null"}, {"origin": "http://127.0.0.1:3000"},
        {"origin": "https://127.0.0.1:7860.evil.example"}, {"origin": "http://[broken"},
        {"sec-fetch-site": "cross-site"},
        {"origin": "http://localhost:3000", "sec-fetch-site": "same-site"},
        {"origin": "http://127.0.0.1:7860", "sec-fetch-site": "cross-site"},
    ],
)  # fmt: skip
@pytest.mark.parametrize("local", [True, False])
def test_another_page_is_refused(headers, local):
    host = {"host": "127.0.0.1:7860"}
    assert "another page" in origin.refusal({**host, **headers}, local=local)
    named = origin.refusal({**host, **headers}, local=local, logged_in=True)
    assert "another page" in named, "its cookie travels with the request"


def test_a_name_that_was_rebound_to_this_machine_is_refused():
    """For the browser it is the same origin, so only the Host gives it away."""
    rebound = {"host": "evil.example:7860", "origin": "http://evil.example:7860",
               "sec-fetch-site": "same-origin"}  # fmt: skip
    assert "127.0.0.1" in origin.refusal(rebound, local=True)
    assert origin.refusal({}, local=True), "every browser sends one"
    assert origin.refusal(rebound, local=False) == "", "served to others: names are the owner's"
    assert origin.refusal(rebound, local=True, logged_in=True) == "", "no cookie goes there"


def test_the_owner_can_name_the_address_of_a_proxy(monkeypatch):
    proxied = {"host": "127.0.0.1:7860", "origin": "https://gpu.example"}
    assert origin.refusal(proxied, local=True)
    monkeypatch.setenv(origin.HOSTS_VARIABLE, "other.example, GPU.example:443")
    assert origin.refusal(proxied, local=True) == ""
    assert origin.refusal({**proxied, "host": "gpu.example"}, local=True) == ""
    assert origin.refusal({**proxied, "origin": "https://evil.example"}, local=True)


def guard(function, local=True):
    return origin.guarded(function, lambda: local, Request, Refused)


def test_an_event_gets_the_request_first_and_passes_its_values_on():
    made = guard(lambda one, two: (one, two))
    own = Request(request=object(), headers=OWN, username=None)
    assert made(own, 1, 2) == (1, 2)
    names = list(inspect.signature(made).parameters.values())
    assert names[0].name == "asked" and made.__annotations__ == {"asked": Request}
    assert names[1].kind is inspect.Parameter.VAR_POSITIONAL
    foreign = Request(request=object(), headers={**OWN, "sec-fetch-site": "cross-site"})
    with pytest.raises(Refused, match="another page"):
        made(foreign, 1, 2)


def test_a_stream_is_refused_before_it_does_anything():
    done = []

    def stream(value):
        done.append(value)
        yield value

    made = guard(stream)
    assert inspect.isgeneratorfunction(made), "gradio asks the function what it is"
    foreign = Request(request=object(), headers={**OWN, "origin": "http://evil.example",
                                                 "sec-fetch-site": "cross-site"})  # fmt: skip
    with pytest.raises(Refused):
        next(made(foreign, 1))
    assert done == []
    assert list(made(Request(request=object(), headers=OWN), 1)) == [1]


def test_headers_that_a_foreign_page_wrote_into_the_body_do_not_count():
    """gradio 3.41 makes an event's request of the body of a call to its API."""
    forged = Request(request=None, headers=OWN)
    made = guard(lambda: "started")
    with pytest.raises(Refused, match="still starting"):
        made(forged)

    def called(headers):
        found = []

        async def endpoint(scope, receive, send):
            found.append(made(forged))

        scope = {"headers": [(name.encode(), text.encode()) for name, text in headers.items()]}
        asyncio.run(origin.Recording(endpoint)(scope, None, None))
        return found

    assert called({"host": "127.0.0.1:7860"}) == ["started"], "gradio's own queue"
    with pytest.raises(Refused, match="another page"):
        called({"host": "127.0.0.1:7860", "origin": "http://evil.example"})


def test_only_calls_of_events_are_noted_and_only_once():
    routes = [types.SimpleNamespace(path=path, app=print) for path in ("/api/{name}", "/file", "/")]
    app = types.SimpleNamespace(router=types.SimpleNamespace(routes=routes))
    origin.record(app)
    origin.record(app)
    assert isinstance(routes[0].app, origin.Recording) and routes[0].app.inner is print
    assert [route.app for route in routes[1:]] == [print, print]
