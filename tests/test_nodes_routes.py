"""ComfyUI's routes: what they answer to this machine, to others, and to a name that was rebound."""

import asyncio
import sys
import types

import pytest
from fakes_comfy import install, load_nodes

KEY = "0123456789abcdef0123"
LIVE, REPORT = "/resalign/live/{node}", "/resalign/report/{key}/{name:.+}"
OWN = {"Host": "127.0.0.1:8188"}


@pytest.fixture
def host(monkeypatch, tmp_path):
    monkeypatch.delenv("RESALIGN_HOSTS", raising=False)
    found = install(monkeypatch, tmp_path)
    web = types.SimpleNamespace(
        Response=lambda status=200, text="": types.SimpleNamespace(status=status, text=text),
        json_response=lambda data: types.SimpleNamespace(status=200, text=str(data)),
        FileResponse=lambda path, headers: types.SimpleNamespace(status=200, text=path.read_text()),
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "aiohttp", types.SimpleNamespace(web=web))
    folder = tmp_path / "output" / "resalign" / "probes" / KEY
    folder.mkdir(parents=True)
    for name in ("report.html", "audit.html"):
        (folder / name).write_text(name)
    load_nodes(monkeypatch, "routes").register()
    return found


def ask(host, route, headers, remote="127.0.0.1", **named):
    request = types.SimpleNamespace(headers=headers, remote=remote, match_info=named, query={})
    return asyncio.run(host.routes[route](request))


def page(host, name, headers, remote="127.0.0.1"):
    return ask(host, REPORT, headers, remote, key=KEY, name=name)


@pytest.mark.parametrize(
    "own",
    ["127.0.0.1:8188", "localhost:8188", "[::1]:8188", "comfy.localhost", "127.0.0.2"],
)
@pytest.mark.parametrize("peer", ["127.0.0.1", "::1", "::ffff:127.0.0.1"])
def test_this_machine_is_served_all(host, own, peer):
    assert page(host, "report.html", {"Host": own}, peer).text == "report.html"
    assert page(host, "audit.html", {"Host": own}, peer).text == "audit.html"
    assert ask(host, LIVE, {"Host": own}, peer, node="1").status == 200


@pytest.mark.parametrize(
    ("headers", "peer"),
    [
        ({"Host": "192.168.1.5:8188"}, "192.168.1.9"),
        ({"Host": "127.0.0.1:8188"}, "192.168.1.9"),  # of a program that says so
        ({"Host": "192.168.1.5:8188"}, "127.0.0.1"),
        ({"Host": "127.0.0.1:8188", "X-Forwarded-For": "192.168.1.9"}, "127.0.0.1"),
        ({"Host": "localhost", "forwarded": "for=192.168.1.9"}, "127.0.0.1"),
        ({"Host": "gpu.example"}, "10.0.0.1"), ({"Host": "127.0.0.1"}, None),
    ],
)  # fmt: skip
def test_the_sheet_with_unblurred_pictures_stays_on_this_machine(host, headers, peer):
    said = page(host, "audit.html", headers, peer)
    assert said.status == 403 and "only in a browser on the machine" in said.text
    assert page(host, "report.html", headers, peer).text == "report.html"
    assert ask(host, LIVE, headers, peer, node="1").status == 200


@pytest.mark.parametrize(
    "foreign", [{"Sec-Fetch-Site": "cross-site"}, {"Origin": "http://evil.example"}]
)
def test_another_page_cannot_embed_the_sheet(host, foreign):
    said = page(host, "audit.html", {**OWN, **foreign})
    assert said.status == 403 and "another page" in said.text


@pytest.mark.parametrize("peer", ["127.0.0.1", "::1"])
def test_a_name_that_was_rebound_to_this_machine_is_refused(host, monkeypatch, peer):
    rebound = {"Host": "evil.example:8188", "Origin": "http://evil.example:8188",
               "Sec-Fetch-Site": "same-origin"}  # fmt: skip
    for said in (page(host, "report.html", rebound, peer), page(host, "audit.html", rebound, peer),
                 ask(host, LIVE, rebound, peer, node="1")):  # fmt: skip
        assert said.status == 403 and "'evil.example'" in said.text
    monkeypatch.setenv("RESALIGN_HOSTS", "gpu.example")
    assert page(host, "report.html", {"Host": "gpu.example"}, peer).status == 200
    assert page(host, "audit.html", {"Host": "gpu.example"}, peer).status == 403
