"""A page of another origin that tries to press our buttons, as gradio's API allows without it."""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

# Requests that a browser sends without asking first: bodies of no declared type, and a websocket.
# The last is for gradio 3.41, whose body may say which request it was, so it lies.
ATTACK = """async ([base, fn, data]) => {
  const host = new URL(base).host;
  const call = {fn_index: fn, data, session_hash: 'evil', event_data: null, trigger_id: null};
  const lie = {...call, request: {url: base, client: {host: '127.0.0.1', port: 1},
    query_params: {}, path_params: {}, headers: {host, origin: base.replace(/\\/$/, '')}}};
  const tried = [];
  for (const [path, body] of [['queue/join', call], ['gradio_api/queue/join', call],
      ['run/predict', call], ['api/predict', call], ['run/predict', lie], ['api/predict', lie],
      ['gradio_api/run/predict', call]]) {
    try {
      await fetch(base + path, {method: 'POST', mode: 'no-cors', credentials: 'include',
                                body: new Blob([JSON.stringify(body)])});
      tried.push(path);
    } catch (error) { tried.push(String(error)); }
  }
  await new Promise((done) => {
    const socket = new WebSocket(base.replace('http', 'ws') + 'queue/join');
    socket.onmessage = ({data: text}) => {
      const {msg} = JSON.parse(text);
      if (msg === 'send_hash') socket.send(JSON.stringify({session_hash: 'evil', fn_index: fn}));
      if (msg === 'send_data') socket.send(JSON.stringify(call));
    };
    socket.onclose = socket.onerror = done;
    setTimeout(done, 4000);
  });
  return tried;
}"""


class _Empty(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<p>another site</p>")

    def log_message(self, *args: object) -> None: ...


@contextmanager
def another_site():
    """Serve an empty page; its address is another origin than the host's, as the port differs."""
    server = HTTPServer(("127.0.0.1", 0), _Empty)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()


def event_of(url: str, button: str, **values: object) -> tuple[int, list[object]]:
    """Return the index of a button's event and its inputs' defaults, apart from `values`."""
    config = json.loads(urllib.request.urlopen(url + "config", timeout=20).read())
    parts = {part["id"]: part["props"] for part in config["components"]}
    names = {number: str(props.get("elem_id") or "") for number, props in parts.items()}
    for index, event in enumerate(config["dependencies"]):
        targets = [target[0] if isinstance(target, list) else target for target in event["targets"]]
        if any(names.get(target) == f"resalign_{button}" for target in targets):
            inputs = event["inputs"]
            data = [values.get(names[n].removeprefix("resalign_"), parts[n].get("value"))
                    for n in inputs]  # fmt: skip
            return event.get("id", index), data
    raise AssertionError(f"no event of {button}")


def call(url: str, fn: int, data: list[object]) -> None:
    """Start an event as a program does, in whatever way this gradio has."""
    body = {"fn_index": fn, "data": data, "session_hash": "program", "event_data": None,
            "trigger_id": None}  # fmt: skip
    for path in ("gradio_api/queue/join", "queue/join", "run/predict"):
        request = urllib.request.Request(
            url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            urllib.request.urlopen(request, timeout=20)
            return
        except urllib.error.HTTPError as error:
            if error.code not in (404, 405):
                raise
    raise AssertionError("no way to call an event")
