// Live widgets of the ResAlign nodes: progress, curves, pictures, reports. No build step.

import { app } from "/scripts/app.js";
import { api } from "/scripts/api.js";
import { opening, ordered } from "./resalign_open.js";
import { drawHint, drawReport, drawState, drawText, failed, reused } from "./resalign_view.js";

const LIVE = ["ResAlign_HardenModel", "ResAlign_ResilienceProbe"];
const REPORTS = ["ResAlign_ResilienceProbe", "ResAlign_ShowReport"];
const MEMORY = "ResAlign_MemoryPlan";
const EXPORT = "ResAlign_ExportHardenedCheckpoint";
const WRITTEN = [EXPORT, "ResAlign_SaveHardeningLora"];
const TEXTS = [...WRITTEN, "ResAlign_LoadHardenedInfo", "ResAlign_PackRelease", "ResAlign_DrawConcept", "ResAlign_TryMyLora", MEMORY];

const HINTS = {
  report: "The headline and the table of the probe appear here.",
  text: "What was written or read appears here.",
  export: "The path of the new file appears here. Destination models is the folder models/checkpoints, or models/diffusion_models for a source that holds the denoiser alone.",
  waiting: "The file is written after the probe, whose figures go into it. To have it at once, disconnect report.",
  models: "Which two models were drawn appears here.",
  memory: "The predicted peak by part, and what was changed to fit, appear here.",
};

// Colours are mixed with the text's own, so that they stay readable on every palette: at 40 % as
// text, at 60 % as lines and bars (tests/test_contrast.py).
const STYLE = `
.resalign { --ra-blue: color-mix(in srgb, #4a90d9 40%, var(--input-text, #ddd));
  --ra-orange: color-mix(in srgb, #d9822b 40%, var(--input-text, #ddd));
  --ra-red: color-mix(in srgb, #d64545 40%, var(--input-text, #ddd));
  --ra-quiet: color-mix(in srgb, var(--descrip-text, #999) 50%, var(--input-text, #ddd)); }
.resalign { box-sizing: border-box; width: 100%; height: 100%; overflow: auto; padding: 6px 8px;
  font: 11px/1.35 Inter, system-ui, sans-serif; color: var(--input-text, #ddd);
  background: var(--component-node-widget-background, var(--comfy-input-bg, #222)); border: 1px solid var(--border-color, #4e4e4e);
  border-radius: 6px; scrollbar-width: thin; user-select: text; }
.resalign-section > * + * { margin-top: 6px; }
.resalign-section + .resalign-section:not(:empty) { margin-top: 10px; }
.resalign-status { font-weight: 600; }
.resalign-warning { color: var(--ra-orange); font-weight: 600; }
.resalign-headline { white-space: pre-line; }
.resalign small { display: block; font-size: 9px; white-space: nowrap; }
.resalign-section:is([data-status="failed"], [data-status="lost"]) .resalign-status { color: var(--ra-red); }
.resalign-hint, .resalign-legend, .resalign-ends, .resalign small, .resalign figcaption, .resalign-tiles span
  { color: var(--ra-quiet); }
.resalign-bar { height: 4px; border-radius: 2px; overflow: hidden; background: var(--border-color, #4e4e4e); }
.resalign-bar i { display: block; height: 100%; background: color-mix(in srgb, #4a90d9 60%, var(--input-text, #ddd)); }
.resalign-section[data-status="done"][data-verdict="good"] .resalign-bar i { background: color-mix(in srgb, #3f9e4d 60%, var(--input-text, #ddd)); }
.resalign-section[data-status="failed"] .resalign-bar i { background: color-mix(in srgb, #d64545 60%, var(--input-text, #ddd)); }
.resalign-section[data-verdict="doubtful"] .resalign-status { color: var(--ra-orange); }
.resalign-section[data-verdict="doubtful"] .resalign-bar i { background: color-mix(in srgb, #d9822b 60%, var(--input-text, #ddd)); }
.resalign-tiles { display: grid; grid-template-columns: repeat(4, auto); justify-content: space-between; gap: 8px; }
.resalign-tiles b { display: block; font-size: 14px; font-variant-numeric: tabular-nums; }
.resalign-tiles span { font-size: 10px; }
.resalign-plot { display: flex; gap: 4px; }
.resalign-plot svg { flex: 1; overflow: visible; min-width: 0; height: 100%; fill: none; stroke-width: 1.75;
  border-left: 1px solid var(--border-color, #4e4e4e); border-bottom: 1px solid var(--border-color, #4e4e4e); }
.resalign-plot polyline { stroke: color-mix(in srgb, var(--colour) 60%, var(--input-text, #ddd)); vector-effect: non-scaling-stroke; stroke-linejoin: round; stroke-linecap: round; }
.resalign-ends { display: flex; flex-direction: column; justify-content: space-between; min-width: 34px;
  text-align: right; font-size: 9px; font-variant-numeric: tabular-nums; }
.resalign-legend { margin-top: 2px; padding-left: 39px; font-size: 10px; }
.resalign-legend span { margin-right: 10px; white-space: nowrap; }
.resalign-legend span::before { content: ""; display: inline-block; width: 10px; height: 3px;
  margin-right: 4px; vertical-align: middle; background: color-mix(in srgb, var(--colour) 60%, var(--input-text, #ddd)); }
.resalign-legend .resalign-dashed::before { background: repeating-linear-gradient(90deg,
  color-mix(in srgb, var(--colour) 60%, var(--input-text, #ddd)) 0 var(--dash), transparent 0 calc(var(--dash) + 2px)); }
.resalign-pictures { display: grid; grid-template-columns: repeat(4, minmax(0, 96px)); gap: 6px; }
.resalign figure { margin: 0; }
.resalign img { display: block; width: 100%; aspect-ratio: 1; object-fit: cover; border-radius: 4px; }
.resalign figcaption { overflow-wrap: anywhere; font-size: 9px; }
.resalign table { width: 100%; border-collapse: collapse; }
.resalign th, .resalign td { text-align: left; padding: 2px 8px 2px 0; vertical-align: top; }
.resalign caption { text-align: left; color: var(--ra-quiet); }
.resalign th { color: var(--ra-quiet); font-weight: 400; border-bottom: 1px solid var(--border-color, #4e4e4e); }
.resalign td + td { background: linear-gradient(#e0603f, #e0603f) left bottom / var(--rate, 0) 2px no-repeat; }
.resalign pre { margin: 0; font: inherit; white-space: pre-wrap; overflow-wrap: anywhere; }
.resalign-columns pre { font-family: ui-monospace, monospace; font-size: 9px; }
.resalign a { color: var(--ra-blue); }`;

/** The part of a box that one of our drawings fills. */
function section(root) {
  const made = document.createElement("div");
  made.className = "resalign-section";
  root.append(made);
  return made;
}

/** A box in a node that shows what is drawn into it; not saved with the workflow. */
function box(node, name, height) {
  const root = document.createElement("div");
  root.className = "resalign";
  const widget = node.addDOMWidget(name, "resalign", root, {
    serialize: false,
    hideOnZoom: false,
    getMinHeight: () => height,
    getValue: () => "",
    setValue: () => {},
  });
  widget.serialize = false; // out of the saved workflow, where values go by position
  return section(root);
}

/** Hide advanced inputs behind a button: the canvas shows them all. Nodes 2.0 has such a button, so
 * ours is not shown there; both keep the state in `showAdvanced`, which a workflow saves. */
function fold(node) {
  const own = new Map((node.widgets ?? []).filter((one) => one.options?.advanced).map((one) => [one.name, one.value]));
  if (!own.size || !node.isWidgetVisible || !node.getLayoutWidgets) return;
  const linked = ({ name }) => node.inputs?.some((one, slot) => one.widget?.name === name && node.isInputConnected(slot));
  const always = () => app.extensionManager?.setting?.get?.("Comfy.Node.AlwaysShowAdvancedWidgets");
  const shown = (widget) => !widget.options?.advanced || node.showAdvanced || always() || linked(widget);
  const { getLayoutWidgets: laidOut, onConfigure: configured } = node;
  for (const name of ["isWidgetVisible", "isWidgetRowVisible"]) { // the second came with 1.58
    const visible = node[name];
    if (visible) node[name] = (widget) => visible.call(node, widget) && shown(widget);
  }
  node.getLayoutWidgets = () => laidOut.call(node).filter(shown);
  const resize = (change) => {
    const before = node.computeSize()[1];
    change();
    node.setSize([node.size[0], node.size[1] + node.computeSize()[1] - before]);
    button.label = `${node.showAdvanced ? "Hide" : "Show"} advanced inputs`;
    node.setDirtyCanvas?.(true, true);
  };
  const button = node.addWidget("button", "advanced", null, () => resize(() => (node.showAdvanced = !node.showAdvanced)),
    { canvasOnly: true, serialize: false });
  button.label = "Show advanced inputs";
  button.serialize = false;
  node.onConfigure = function (saved) {
    configured?.apply(this, arguments);
    const changed = (node.widgets ?? []).some((one) => own.has(one.name) && one.value !== own.get(one.name));
    if (saved?.showAdvanced ?? changed) node.showAdvanced = true; // what is set is in sight
    button.label = `${node.showAdvanced ? "Hide" : "Show"} advanced inputs`;
  };
  node.setSize([node.size[0], node.computeSize()[1]]);
}

/** Workflows of earlier versions name a shipped concept as files do: hate_symbols. */
function respell(node) {
  const configured = node.onConfigure;
  node.onConfigure = function () {
    configured?.apply(this, arguments);
    const preset = node.widgets?.find(({ name }) => name === "preset");
    const shown = String(preset?.value ?? "").replaceAll("_", " ");
    if (preset?.options?.values?.includes?.(shown)) preset.value = shown;
  };
}

/** Say before a run when the file will be there; what an export said stays. */
function hintExport(node) {
  if (node.resalignText.querySelector("pre")) return;
  const waits = node.inputs?.some((one, slot) => one.name === "report" && node.isInputConnected(slot));
  drawHint(node.resalignText, `${HINTS.export}${waits ? ` ${HINTS.waiting}` : ""}`);
}

/** All nodes of a graph and of the subgraphs in it, each with the id that the server calls it by. */
function* nodes(graph, prefix = "") {
  for (const node of graph?.nodes ?? []) {
    const id = `${prefix}${node.id}`;
    yield [id, node];
    if (node.subgraph) yield* nodes(node.subgraph, `${id}:`);
  }
}

function nodeCalled(id) {
  for (const [name, node] of nodes(app.rootGraph ?? app.graph)) if (name === String(id)) return node;
  return null;
}

function idOf(wanted) {
  for (const [id, node] of nodes(app.rootGraph ?? app.graph)) if (node === wanted) return id;
  return null;
}

function workflowId() {
  return (app.rootGraph ?? app.graph)?.id ?? "";
}

/** Show what the node did before this page was opened, if it did anything. */
async function attach(node) {
  const id = idOf(node);
  if (id === null) return;
  try {
    const where = `/resalign/live/${encodeURIComponent(id)}?workflow=${encodeURIComponent(workflowId())}`;
    const answer = await api.fetchApi(where);
    if (answer.ok) drawState(node.resalignLive, (await answer.json()).state);
  } catch (error) {
    console.warn("ResAlign: the server does not answer", error);
  }
}

/** Failures that no event of ours tells: refusals before the work, and a server that is gone. */
function listen() {
  api.addEventListener("execution_error", ({ detail }) => {
    const node = nodeCalled(detail?.node_id ?? detail?.display_node);
    const said = detail?.exception_message ?? "it failed";
    const shown = node?.resalignLive?.resalignState;
    if (node?.resalignLive && shown?.status !== "failed") drawState(node.resalignLive, failed(shown, said));
    else if (node?.resalignText) drawHint(node.resalignText, said);
  });
  const running = () => [...nodes(app.rootGraph ?? app.graph)].map(([, node]) => node)
    .filter((node) => node.resalignLive?.resalignState?.status === "running");
  api.addEventListener("reconnecting", () => {
    for (const { resalignLive: box } of running())
      drawState(box, failed(box.resalignState, "The server does not answer; if it has ended, start it.", "lost"));
  });
  api.addEventListener("reconnected", () => {
    for (const [, node] of nodes(app.rootGraph ?? app.graph)) if (node.resalignLive) attach(node);
  });
}

/** Templates come in the order of the disk, and a pack cannot give another to the server. */
function orderTemplates() {
  const read = api.getWorkflowTemplates;
  const pack = new URL(import.meta.url).pathname.split("/").at(-2);
  if (read) api.getWorkflowTemplates = async (...given) => ordered(await read.apply(api, given), decodeURIComponent(pack));
}

const opened = opening(app);
orderTemplates();

app.registerExtension({
  name: "resalign",

  beforeConfigureGraph: opened.beforeConfigureGraph,

  setup() {
    const style = document.createElement("style");
    style.textContent = STYLE;
    document.head.append(style);
    listen();
    api.addEventListener("resalign.progress", ({ detail }) => {
      if (detail.workflow && detail.workflow !== workflowId()) return; // of another tab
      const node = nodeCalled(detail.node);
      if (node?.resalignLive) drawState(node.resalignLive, detail.state);
      else if (node?.resalignText && detail.state.status !== "done") drawHint(node.resalignText, detail.state.message);
    });
  },

  async nodeCreated(node) {
    const kind = node.comfyClass;
    if (kind?.startsWith("ResAlign_")) fold(node);
    if (kind === "ResAlign_ConceptList") respell(node);
    if (LIVE.includes(kind)) {
      node.resalignLive = box(node, "live", 470);
      drawState(node.resalignLive, null);
      setTimeout(() => attach(node), 200); // it gets its id only when it is put into the graph
    }
    if (TEXTS.includes(kind)) {
      const table = kind === MEMORY;
      node.resalignText = box(node, "text", table ? 230 : WRITTEN.includes(kind) ? 150 : 84);
      node.resalignText.classList.toggle("resalign-columns", table);
      const drawn = ["ResAlign_DrawConcept", "ResAlign_TryMyLora"].includes(kind);
      drawHint(node.resalignText, HINTS[table ? "memory" : drawn ? "models" : kind === EXPORT ? "export" : "text"]);
    }
    if (kind === EXPORT) {
      const changed = node.onConnectionsChange;
      node.onConnectionsChange = function () {
        changed?.apply(this, arguments);
        hintExport(this);
      };
    }
    if (kind === "ResAlign_ShowReport")
      drawHint((node.resalignReport = box(node, "report", 340)), HINTS.report);
    else if (REPORTS.includes(kind)) node.resalignReport = section(node.resalignLive.parentElement);
    if (!node.resalignLive && !node.resalignReport && !node.resalignText) return;
    const executed = node.onExecuted;
    node.onExecuted = function (output) {
      executed?.apply(this, arguments);
      const report = output?.resalign_report?.[0];
      const kept = this.resalignLive && reused(this.resalignLive.resalignState, output);
      if (kept) drawState(this.resalignLive, kept);
      if (report && this.resalignReport)
        drawReport(this.resalignReport, report, (path) => api.apiURL(path), Boolean(this.resalignLive));
      if (output?.text && this.resalignText) drawText(this.resalignText, output.text);
    };
  },

  afterConfigureGraph() {
    opened.afterConfigureGraph();
    for (const [, node] of nodes(app.rootGraph ?? app.graph)) {
      if (node.resalignLive) attach(node);
      if (node.comfyClass === EXPORT) hintExport(node);
    }
  },
});
