// Run by tests/test_web_js.py: node --test tests/web_open_test.mjs
import assert from "node:assert/strict";
import { test } from "node:test";
import * as open from "../web/resalign_open.js";

const SD15 = "v1-5-pruned-emaonly-fp16.safetensors";
const SDXL = "sd_xl_base_1.0.safetensors";

test("a checkpoint that is there stays chosen", () => {
  assert.equal(open.substitute(["a.safetensors", SD15], SD15), null);
});

test("the first checkpoint of the example's family is chosen instead, never one of ours", () => {
  const files = ["animagine_xl.safetensors", "hardened.safetensors", "dreamshaper_8.safetensors", "z.safetensors"];
  assert.equal(open.substitute(files, SD15), "dreamshaper_8.safetensors");
  assert.equal(open.substitute(files, SDXL), "animagine_xl.safetensors");
});

test("nothing is chosen where nothing fits, so that ComfyUI offers the download", () => {
  for (const files of [[], ["hardened.safetensors"], ["juggernautXL.safetensors"], undefined])
    assert.equal(open.substitute(files, SD15), null);
  assert.equal(open.substitute(["z.safetensors"], "qwen_image_vae.safetensors"), null, "a part of a model");
});

test("a view begins at the upper left, right of the sidebar and below the bar", () => {
  const { scale, offset } = open.viewOf([-420, 52, 1190], 1280);
  assert.deepEqual([-420 + offset[0], 52 + offset[1]].map((one) => Math.round(one * scale)), [75, 100]);
  assert.ok(scale <= 1 && (770 + offset[0]) * scale <= 1280);
  assert.equal(open.viewOf([0, 0, 1190], 3000).scale, 1);
  assert.equal(open.viewOf([0, 0, 1190], 400).scale, 0.75, "small windows scroll rather than shrink");
});

test("templates come in the order of their numbers, those of other packs as they are", () => {
  const given = { resalign: ["Harden SDXL", "10 Last", "2 Full", "1 Quick"], other: ["b", "a"] };
  assert.deepEqual(open.ordered(given, "resalign"),
    { resalign: ["1 Quick", "2 Full", "10 Last", "Harden SDXL"], other: ["b", "a"] });
  assert.deepEqual(open.ordered({ other: ["b", "a"] }, "resalign"), { other: ["b", "a"] });
  assert.equal(open.ordered(undefined, "resalign"), undefined);
});

/** A front end whose own fit comes `late` frames after the graph, with a template in it. */
function frontEnd(extra, { late = 0, restores = true } = {}) {
  const frames = [];
  globalThis.requestAnimationFrame = (step) => frames.push(step);
  const loader = { type: "CheckpointLoaderSimple", widgets: [{ name: "ckpt_name", value: SD15, options: { values: ["mine.safetensors"] } }] };
  const note = { type: "MarkdownNote", title: "Read me", pos: [-420, 130], size: [400, 200] };
  const graph = { extra, nodes: [note, loader], groups: [{ title: "4 Export", pos: [800, 0], size: [900, 9] }, { title: "1 Choose", pos: [26, 52], size: [328, 246] }] };
  const canvas = { ds: { scale: 1, offset: [0, 0] }, graph, setDirty() {}, canvas: { getBoundingClientRect: () => ({ width: 1280 }) } };
  const said = [];
  const app = { rootGraph: graph, canvas, extensionManager: { setting: { get: () => restores }, toast: { add: ({ detail }) => said.push(detail) } } };
  const fit = () => Object.assign(canvas.ds, { scale: 0.26, offset: [9, 9] });
  const hooks = open.opening(app);
  hooks.beforeConfigureGraph();
  if (!late) fit();
  hooks.afterConfigureGraph();
  for (let k = 1; k <= 60; k++) {
    if (k === late) fit();
    frames.shift()?.();
  }
  return { view: canvas.ds, name: loader.widgets[0].value, said, extra };
}

test("a template is shown from its note on, whenever ComfyUI fits it", () => {
  for (const late of [0, 3]) {
    const { view, name, said, extra } = frontEnd({ resalign: "template" }, { late });
    assert.equal(view.scale, 1);
    assert.deepEqual(view.offset, [75 + 420, 100 - 52]);
    assert.equal(name, "mine.safetensors");
    assert.match(said.join(), /v1-5-pruned-emaonly-fp16\.safetensors.*mine\.safetensors/);
    assert.equal(extra.resalign, undefined, "a saved workflow is no template");
  }
});

test("other workflows, and those whose user wants no views restored, stay where they are", () => {
  const other = frontEnd({ ds: {} });
  assert.equal(other.view.scale, 0.26);
  assert.deepEqual([other.name, other.said], [SD15, []]);
  assert.equal(frontEnd({ resalign: "template" }, { restores: false }).view.scale, 0.26);
});
