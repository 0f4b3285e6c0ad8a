"""No wire of an example passes behind a node that it does not belong to, and nothing that opens
covers a node below."""

import asyncio
import json
from itertools import pairwise

import pytest
from fakes_comfy import install
from test_workflows import NAMES

_BAR, _SLOT = 30, 20  # of a node's title, and of a socket
_ROW = 34  # of a widget in Nodes 2.0; on the canvas it is 24
_TALLER = 60  # what Nodes 2.0 adds to a node of the first columns, as measured in 0.33.0
_STEPS = 80


def opened(root, name):
    return json.loads((root / f"example_workflows/{name}.json").read_text(encoding="utf-8"))


def place(node, sockets, number, x):
    return x, node["pos"][1] + (sockets.index(number) + 0.7) * _SLOT


def ends(nodes, link):
    """Where a wire begins and ends, as LiteGraph places sockets; those of widgets do not count."""
    _, start, out, end, into, _ = link
    first, last = nodes[start], nodes[end]
    sockets = [k for k, one in enumerate(last["inputs"]) if "widget" not in one]
    begin = place(first, range(len(first["outputs"])), out, first["pos"][0] + first["size"][0])
    return begin, place(last, sockets, into, last["pos"][0])


def spline(begin, end):
    """Points of a wire, which leaves and arrives level by a quarter of its length."""
    (x0, y0), (x3, y3) = begin, end
    reach = 0.25 * ((x3 - x0) ** 2 + (y3 - y0) ** 2) ** 0.5
    for step in range(1, _STEPS):
        t = step / _STEPS
        a, b, c, d = (1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t * t * (1 - t), t**3
        yield a * x0 + b * (x0 + reach) + c * (x3 - reach) + d * x3, (a + b) * y0 + (c + d) * y3


def straight(points):
    for (x0, y0), (x1, y1) in pairwise(points):
        for step in range(_STEPS):
            yield x0 + (x1 - x0) * step / _STEPS, y0 + (y1 - y0) * step / _STEPS


def wires(flow):
    """Each link with the points of its wire, which passes its reroutes."""
    nodes = {node["id"]: node for node in flow["nodes"]}
    stops = {}
    for one in flow["extra"].get("reroutes", ()):
        for link in one["linkIds"]:
            stops.setdefault(link, []).append(tuple(one["pos"]))
    for link in flow["links"]:
        begin, end = ends(nodes, link)
        led = stops.get(link[0])
        yield link, list(straight([begin, *led, end]) if led else spline(begin, end))


def crossed(flow):
    """(from, to, node) where a wire passes behind a node; its own ones by more than the edge."""
    found = set()
    for (_, start, _, end, _, kind), points in wires(flow):
        for node in flow["nodes"]:
            (x, y), (wide, high) = node["pos"], node["size"]
            edge = 15 if node["id"] in (start, end) else -4
            for px, py in points:
                inside = x + edge < px < x + wide - edge and y - _BAR + edge < py < y + high - edge
                if inside:
                    found.add((start, end, kind, node["type"]))
    return found


@pytest.mark.parametrize("name", NAMES)
def test_no_wire_passes_behind_a_node_that_it_does_not_belong_to(root, name):
    assert crossed(opened(root, name)) == set()


def test_the_reroutes_of_an_example_are_those_of_its_links(root):
    flow = opened(root, "1 Quick harden and compare")
    links = {link[0] for link in flow["links"]}
    extra = flow["extra"]
    numbers = {one["id"] for one in extra["reroutes"]}
    assert {k for one in extra["reroutes"] for k in one["linkIds"]} <= links
    assert {one["id"] for one in extra["linkExtensions"]} <= links
    assert {one["parentId"] for one in extra["linkExtensions"]} <= numbers


@pytest.mark.parametrize("name", NAMES)
def test_what_a_node_can_unfold_covers_none_below_it(root, monkeypatch, tmp_path, name):
    """Advanced inputs, and those of the choice that shows the most, in either renderer."""
    install(monkeypatch, tmp_path)
    import resalign

    extension = asyncio.run(resalign.comfy_entrypoint())
    schemas = {s.node_id: s for s in (
        node.define_schema() for node in asyncio.run(extension.get_node_list()))}  # fmt: skip
    nodes = opened(root, name)["nodes"]
    for node in nodes:
        if node["type"] not in schemas:
            continue
        inputs = schemas[node["type"]].inputs
        rows = sum(bool(item.options.get("advanced") or item.advanced) for item in inputs)
        rows += max((len(option.inputs) for item in inputs if item.kind == "DynamicCombo"
                     for option in item.options["options"]), default=0)  # fmt: skip
        (x, y), (wide, high) = node["pos"], node["size"]
        below = [
            other["type"] for other in nodes
            if other is not node and x < other["pos"][0] + other["size"][0]
            and other["pos"][0] < x + wide and y < other["pos"][1]
            and other["pos"][1] - _BAR < y + high + _TALLER + _ROW * rows
        ]  # fmt: skip
        assert not below, (node["type"], rows)
