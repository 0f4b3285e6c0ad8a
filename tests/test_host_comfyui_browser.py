"""Every example in the front end of a real ComfyUI: opened, queued from the page, watched."""

import json
import shutil
import urllib.error

import pytest
from host_browser import front
from host_checkpoints import place_reduced_sdxl
from host_comfyui import CHECKPOINT, comfyui

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
SAVED = [
    "preset",
    "random_seed",
    "resolution",
    "rank",
    "outer_steps",
    "simulate",
    "solver",
    "products",
    "resilience_weight",
    "retain_weight",
    "gamma",
    "learning_rate",
    "precision",
    "gradient_checkpointing",
]  # the first widgets of Hardening Settings, as a workflow saves them
CUT = """() => [...document.querySelectorAll('.resalign figcaption')].map((one) =>
  one.scrollWidth > one.clientWidth || one.scrollHeight > one.clientHeight)"""
LOOKS = [("canvas", "dark"), ("canvas", "light"), ("vue", "light")]


@pytest.fixture(scope="module")
def host(tmp_path_factory, root):
    with comfyui(tmp_path_factory.mktemp("browser"), root, 8213) as running:
        yield running


@pytest.fixture
def page(request, host):
    with front(host.address) as opened:
        opened.open()
        opened.set(VueNodes_Enabled=False, ColorPalette="dark", Minimap_Visible=False)
        yield opened
        print(request.node.name, "seconds:", opened.seen)
        assert opened.errors == []


def examples(root):
    return root / "example_workflows"


def shots(request, host):
    """The folder of the pictures: beside the host's log."""
    folder = host.base / "shots"
    folder.mkdir(exist_ok=True)
    return folder / (request.node.name.replace("/", "-") + ".png")


@pytest.mark.parametrize(("renderer", "palette"), LOOKS)
def test_a_page_watches_reloads_in_mid_run_and_sees_the_end(
    request, root, host, page, renderer, palette
):
    page.set(VueNodes_Enabled=renderer == "vue", ColorPalette=palette)
    page.reopen()
    number = LOOKS.index((renderer, palette))
    page.load(
        examples(root) / "1 Quick harden and compare.json", outer_steps=30, random_seed=number
    )
    page.queue()
    before = page.wait(lambda: page.at("HardenModel", "harden", 3))
    assert before["lines"] >= 1 and before["images"] >= 2
    captions = page.page.evaluate(CUT)
    assert len(captions) >= 2 and not any(captions), "no caption is cut off"
    page.shoot(shots(request, host))

    page.reopen()  # the page comes back with its last workflow, and asks for the state
    after = page.wait(lambda: page.at("HardenModel", "harden", 3), 30)
    assert after["status"] == "running" and after["images"] >= 2
    page.wait(lambda: page.at("HardenModel", "harden", 6))  # it keeps following the run
    host.post("/interrupt", {})
    stopped = page.wait(lambda: (b := page.box("HardenModel", "Live"))["status"] == "stopped" and b)
    assert "run the workflow again" in stopped["text"] and "stopped: stopped" not in stopped["text"]
    page.set(VueNodes_Enabled=False, ColorPalette="dark")


def test_the_full_example_ends_with_a_report_and_files(request, root, host, page):
    page.load(examples(root) / "2 Full harden with probe.json", random_seed=50)
    page.queue()
    done = page.done()
    assert " in 4 steps" in done["text"] and "after fine-tuning" in done["text"]
    probed = page.done("ResilienceProbe")["text"]
    assert probed.startswith("Not safe to publish: it comes from a test run."), "the verdict first"
    assert probed.count("Not safe to publish") == 1 and "it did not draw" in probed
    link = "open the whole report"
    shown = page.wait(lambda: link in (b := page.box("ShowReport", "Report"))["text"] and b)
    assert shown["text"].startswith("Not safe to publish: it comes from a test run.")
    assert "resilience" in shown["text"].lower() and "original" in shown["text"]
    page.wait(lambda: "tensors changed" in page.box("ExportHardenedCheckpoint", "Text")["text"])
    page.wait(lambda: "32 modules" in page.box("SaveHardeningLora", "Text")["text"])
    page.shoot(shots(request, host))

    # All examples number their nodes alike: another one does not show what this one did.
    workflow = json.loads((examples(root) / "Harden SDXL.json").read_text(encoding="utf-8"))
    page.show(workflow, "another")
    page.page.wait_for_timeout(1500)
    assert page.box("HardenModel", "Live")["text"].startswith("not run yet")


def test_a_lora_of_the_list_is_tried(request, root, host, page):
    loras = host.base / "models/loras"
    for made in sorted(loras.glob("hardening_lora*.safetensors"))[:1]:
        shutil.copyfile(made, loras / "my_lora.safetensors")
    page.reopen()
    page.load(examples(root) / "3 Try my LoRA.json", random_seed=50)
    page.queue()
    page.done()
    page.finished()
    page.shoot(shots(request, host))  # the canvas fetches pictures of nodes in sight only
    page.wait(lambda: page.pictures("PreviewImage"), 60)
    page.shoot(shots(request, host))


def test_the_quick_example_draws_what_was_removed_and_what_should_stay(request, root, host, page):
    page.load(examples(root) / "1 Quick harden and compare.json", random_seed=52)
    page.queue()
    assert "Test run, not safe to publish" in page.done()["text"]
    page.finished()
    page.shoot(shots(request, host))  # the canvas fetches pictures of nodes in sight only
    page.wait(lambda: page.pictures("PreviewImage") == 3, 60)
    told = page.box("DrawConcept", "Text")["text"]
    assert told == "original and hardened"
    page.shoot(shots(request, host))


PLACES = """() => {
  const { scale, offset } = app.canvas.ds;
  const at = ({ pos }) => [(pos[0] + offset[0]) * scale, (pos[1] + offset[1]) * scale];
  const of = (type) => app.graph.nodes.find((one) => one.type === type);
  const found = ['MarkdownNote', 'CheckpointLoaderSimple', 'ResAlign_ConceptList',
                 'ResAlign_HardenModel'];
  return { scale, places: found.map((type) => at(of(type))), extra: app.rootGraph.extra,
           name: of('CheckpointLoaderSimple').widgets[0].value, saved: app.graph.serialize() };
}"""
OPEN = "(flow) => app.loadGraphData(flow, true, true, 'opened', {openSource: 'template'})"


@pytest.mark.parametrize("renderer", ["canvas", "vue"])
@pytest.mark.parametrize("name", ["1 Quick harden and compare", "2 Full harden with probe"])
def test_a_template_opens_where_its_first_steps_can_be_read(root, page, renderer, name):
    page.set(VueNodes_Enabled=renderer == "vue")
    flow = json.loads((examples(root) / f"{name}.json").read_text("utf-8"))
    page.page.evaluate(OPEN, flow)
    page.page.wait_for_timeout(2500)
    shown = page.page.evaluate(PLACES)
    assert shown["scale"] >= 0.75
    assert all(60 < x < 1300 and 80 < y < 800 for x, y in shown["places"])
    assert shown["name"] == CHECKPOINT, "the first that is there, and fits"
    assert "resalign" not in shown["extra"]
    told = page.page.get_by_text("was chosen instead")
    assert told.count() == 1

    saved = shown["saved"]
    saved["extra"]["ds"] = {"scale": 0.5, "offset": [450, 100]}
    page.show(saved, "saved")
    assert page.page.evaluate("() => app.canvas.ds.scale") == 0.5, "as its user left it"
    page.set(VueNodes_Enabled=False)


def test_templates_of_the_pack_come_in_order_below_its_name(root, host, page):
    page.page.evaluate("() => app.extensionManager.command.execute('Comfy.BrowseTemplates')")
    page.page.get_by_text("ResAlign", exact=True).first.click(timeout=20_000)
    titles = sorted(path.stem for path in examples(root).glob("*.json"))
    page.page.get_by_text(titles[-1], exact=True).first.wait_for(timeout=20_000)
    text = page.page.evaluate("() => document.body.innerText")
    found = sorted(titles, key=lambda title: text.rindex(title))
    assert found == titles
    page.page.keyboard.press("Escape")


SHOWN = """(type) => { const node = app.graph.nodes.find((one) => one.type === type);
  return node.widgets.filter((one) => node.isWidgetVisible(one)).map((one) => one.name); }"""
PRESS = """(type) => { const node = app.graph.nodes.find((one) => one.type === type);
  node.widgets.find((one) => one.type === 'button' && /advanced/i.test(one.label)).callback(); }"""


def test_advanced_inputs_fold_behind_a_button_and_stay_open_where_set(root, host, page):
    kind = "ResAlign_HardeningSettings"
    if not host.info[kind]["input"]["optional"].get("solver", [0, {}])[1].get("advanced"):
        pytest.skip("this ComfyUI has no advanced inputs")
    flow = json.loads((examples(root) / "1 Quick harden and compare.json").read_text("utf-8"))
    page.show(flow, "folded")
    plain = ["preset", "random_seed", "resolution", "rank", "outer_steps", "advanced"]
    assert page.page.evaluate(SHOWN, kind) == plain
    page.page.evaluate(PRESS, kind)
    assert "solver" in page.page.evaluate(SHOWN, kind)
    page.page.evaluate(PRESS, kind)
    assert page.page.evaluate(SHOWN, kind) == plain
    (node,) = [one for one in flow["nodes"] if one["type"] == kind]
    node["widgets_values"][SAVED.index("gradient_checkpointing")] = True
    page.show(flow, "set")
    assert "gradient_checkpointing" in page.page.evaluate(SHOWN, kind)


def test_the_sdxl_example_is_opened_and_queued(request, root, host, page):
    """On the reduced SDXL: as deep as the published one, narrow, of random weights."""
    source = place_reduced_sdxl(host.base / "models/checkpoints")
    page.reopen()  # which reads the list of checkpoints again
    page.load(examples(root) / "Harden SDXL.json", checkpoint=source, outer_steps=2,
              random_seed=51, precision="preset")  # fmt: skip
    page.queue()
    page.done(timeout=1500)
    page.wait(lambda: "tensors changed" in page.box("ExportHardenedCheckpoint", "Text")["text"])
    page.shoot(shots(request, host))


PLAN = """() => { // Memory Plan between Hardening Settings and Harden Model
  const of = (type) => app.graph.nodes.find((node) => node.type === type);
  const [settings, harden] = ['HardeningSettings', 'HardenModel'].map((n) => of(`ResAlign_${n}`));
  const plan = LiteGraph.createNode('ResAlign_MemoryPlan');
  app.graph.add(plan);
  plan.pos = [-380, 940];
  const into = (node, name) => node.inputs.findIndex((one) => one.name === name);
  of('CheckpointLoaderSimple').connect(0, plan, into(plan, 'model'));
  settings.connect(0, plan, into(plan, 'settings'));
  plan.connect(0, harden, into(harden, 'settings'));
  plan.widgets.find((one) => one.name === 'budget').value = 8;
}"""


@pytest.mark.parametrize("renderer", ["canvas", "vue"])
def test_a_memory_plan_shows_the_peak_by_part_in_its_node(request, root, host, page, renderer):
    page.set(VueNodes_Enabled=renderer == "vue")
    page.reopen()
    page.load(examples(root) / "1 Quick harden and compare.json", outer_steps=2,
              random_seed=60 + (renderer == "vue"))  # fmt: skip
    page.page.evaluate(PLAN)
    assert "appear here" in page.box("MemoryPlan", "Text")["text"]
    page.queue()
    table = "adapter and its state"
    shown = page.wait(lambda: table in (b := page.box("MemoryPlan", "Text"))["text"] and b)
    assert "peak" in shown["text"] and "fits 8.0 GiB" in shown["text"]
    page.close_up("MemoryPlan")
    page.shoot(shots(request, host), fit=False)
    page.done()
    page.set(VueNodes_Enabled=False)


def test_the_blueprint_is_offered_and_opens(root, host, page):
    try:
        offered = host.get("/global_subgraphs").values()
    except urllib.error.HTTPError as error:
        if error.code != 404:
            raise
        pytest.skip("this ComfyUI has no blueprints of packs")
    assert [one for one in offered if one["name"] == "Harden and Export"]
    assert not page.page.get_by_text("Failed to load subgraph blueprints").count()
    page.show(json.loads((root / "subgraphs/Harden and Export.json").read_text()), "blueprint")
    assert page.box("HardenModel", "Live")["status"] == ""
    assert page.box("ExportHardenedCheckpoint", "Text")
