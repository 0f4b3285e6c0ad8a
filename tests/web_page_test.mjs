// Run by tests/test_web_js.py: node --test tests/web_page_test.mjs
// The extension itself, with stand-ins for the front end's two modules and for the document.
import assert from "node:assert/strict";
import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { fileURLToPath, pathToFileURL } from "node:url";

const WEB = fileURLToPath(new URL("../web/", import.meta.url));
const folder = mkdtempSync(join(tmpdir(), "resalign-web-"));
after(() => rmSync(folder, { recursive: true, force: true }));

class Element {
  constructor() {
    Object.assign(this, { children: [], dataset: {}, textContent: "", attributes: {} });
    this.style = { setProperty() {} };
    this.classList = { toggle() {}, add() {} };
  }
  append(...parts) { for (const part of parts) { this.children.push(part); part.parentElement = this; } }
  replaceChildren(...parts) { this.children = []; this.append(...parts); }
  setAttribute(name, value) { this.attributes[name] = value; }
  querySelector() { return null; }
  get firstChild() { return this.children[0]; }
  get text() { return [this.textContent, ...this.children.map((one) => one.text ?? "")].join(" ").trim(); }
}

const listeners = {};
const fetched = [];
let extension;
const app = { rootGraph: { id: "flow", nodes: [] }, registerExtension: (made) => (extension = made) };
const api = {
  addEventListener: (name, call) => (listeners[name] ??= []).push(call),
  fetchApi: async (path) => (fetched.push(path), { ok: false }),
};
globalThis.front = { app, api };
globalThis.document = { createElement: () => new Element(), createElementNS: () => new Element(), head: new Element() };

for (const name of ["resalign_open.js", "resalign_view.js"]) cpSync(join(WEB, name), join(folder, name));
writeFileSync(join(folder, "app.js"), "export const app = globalThis.front.app;");
writeFileSync(join(folder, "api.js"), "export const api = globalThis.front.api;");
writeFileSync(join(folder, "package.json"), '{ "type": "module" }');
const source = readFileSync(join(WEB, "resalign.js"), "utf8");
writeFileSync(join(folder, "resalign.js"), source.replace("/scripts/app.js", "./app.js").replace("/scripts/api.js", "./api.js"));
await import(pathToFileURL(join(folder, "resalign.js")));
extension.setup();

const tell = (name, detail) => (listeners[name] ?? []).forEach((call) => call({ detail }));

async function created(id, comfyClass, more = {}) {
  const node = { id, comfyClass, inputs: [], widgets: [], addDOMWidget: () => ({}), ...more };
  app.rootGraph.nodes.push(node);
  await extension.nodeCreated(node);
  return node;
}

const running = { status: "running", step: 9, total: 20, curves: { harm: [[9, 1]] }, pictures: [] };

test("an event of a run is shown in its node, and another tab's is not", async () => {
  const { resalignLive: box } = await created(1, "ResAlign_HardenModel");
  tell("resalign.progress", { node: "1", workflow: "another", state: running });
  assert.equal(box.resalignState, null);
  tell("resalign.progress", { node: "1", workflow: "flow", state: running });
  assert.equal(box.resalignState.status, "running");
});

test("a refusal before the work is shown in the node that refused, with its reason", async () => {
  const { resalignLive: box } = await created(2, "ResAlign_HardenModel");
  tell("execution_error", { node_id: "2", exception_message: "connect a MODEL" });
  assert.equal(box.dataset.status, "failed");
  assert.match(box.text, /connect a MODEL/);
  const { resalignText: written } = await created(3, "ResAlign_ExportHardenedCheckpoint");
  tell("execution_error", { node_id: "3", exception_message: "the MODEL connected is not the hardened one" });
  assert.match(written.text, /not the hardened one/);
});

test("a server that is gone is told in what was running, and asked again when it is back", async () => {
  const { resalignLive: busy } = await created(4, "ResAlign_ResilienceProbe");
  const { resalignLive: idle } = await created(5, "ResAlign_HardenModel");
  tell("resalign.progress", { node: "4", state: running });
  tell("reconnecting");
  assert.equal(busy.dataset.status, "lost");
  assert.match(busy.text, /The server does not answer.*continue from step 9/);
  assert.equal(idle.dataset.status, "");
  fetched.length = 0;
  tell("reconnected");
  assert.ok(fetched.includes("/resalign/live/4?workflow=flow"));
});

test("a concept of an earlier workflow is named as the list names it", async () => {
  const preset = { name: "preset", value: "hate_symbols", options: { values: ["none", "hate symbols"] } };
  const node = await created(6, "ResAlign_ConceptList", { widgets: [preset] });
  node.onConfigure({});
  assert.equal(preset.value, "hate symbols");
  preset.value = "none";
  node.onConfigure({});
  assert.equal(preset.value, "none");
});
