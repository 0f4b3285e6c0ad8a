// Live widgets of the ResAlign nodes: progress, curves, pictures, reports. No build step.

import { app } from "/scripts/app.js";
import { api } from "/scripts/api.js";
import { drawReport, drawState, drawText } from "./resalign_view.js";

const LIVE = ["ResAlign_HardenModel", "ResAlign_ResilienceProbe"];
const REPORTS = ["ResAlign_ResilienceProbe", "ResAlign_ShowReport"];
const TEXTS = ["ResAlign_ExportHardenedCheckpoint", "ResAlign_SaveHardeningLora", "ResAlign_LoadHardenedInfo"];

const STYLE = `
.resalign { box-sizing: border-box; width: 100%; height: 100%; overflow: auto; padding: 4px 6px;
  font: 11px/1.4 sans-serif; color: var(--input-text, #ddd); background: var(--comfy-input-bg, #222);
  border: 1px solid var(--border-color, #4e4e4e); border-radius: 4px; }
.resalign svg { width: 100%; height: 90px; fill: none; stroke-width: 1.5; display: block; }
.resalign-legend span { margin-right: 8px; white-space: nowrap; }
.resalign-legend span::before { content: ""; display: inline-block; width: 8px; height: 8px;
  margin-right: 3px; background: var(--colour); }
.resalign-pictures { display: flex; gap: 4px; }
.resalign-pictures img { min-width: 0; flex: 1; max-width: 96px; border-radius: 3px; }
.resalign table { border-collapse: collapse; margin: 4px 0; }
.resalign th, .resalign td { text-align: left; padding: 1px 6px 1px 0; vertical-align: top; }
.resalign pre { margin: 0; white-space: pre-wrap; word-break: break-word; }
.resalign a { color: inherit; }
.resalign-status { margin-bottom: 4px; white-space: pre-line; }`;

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
  return root;
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

/** Show what the node did before this page was opened, if it did anything. */
async function attach(node) {
  const id = idOf(node);
  if (id === null) return;
  try {
    const answer = await api.fetchApi(`/resalign/live/${encodeURIComponent(id)}`);
    if (answer.ok) drawState(node.resalignLive, await answer.json());
  } catch (error) {
    console.warn("ResAlign: the server does not answer", error);
  }
}

app.registerExtension({
  name: "resalign",

  setup() {
    const style = document.createElement("style");
    style.textContent = STYLE;
    document.head.append(style);
    api.addEventListener("resalign.progress", ({ detail }) => {
      const node = nodeCalled(detail.node);
      if (node?.resalignLive) drawState(node.resalignLive, detail.state);
    });
  },

  async nodeCreated(node) {
    const kind = node.comfyClass;
    if (LIVE.includes(kind)) {
      node.resalignLive = box(node, "live", 230);
      drawState(node.resalignLive, null);
      setTimeout(() => attach(node), 200); // it gets its id only when it is put into the graph
    }
    if (REPORTS.includes(kind)) node.resalignReport = box(node, "report", 90);
    if (TEXTS.includes(kind)) node.resalignText = box(node, "text", 60);
    if (!node.resalignLive && !node.resalignReport && !node.resalignText) return;
    const executed = node.onExecuted;
    node.onExecuted = function (output) {
      executed?.apply(this, arguments);
      const report = output?.resalign_report?.[0];
      if (report && this.resalignReport)
        drawReport(this.resalignReport, report, (path) => api.apiURL(path));
      if (output?.text && this.resalignText) drawText(this.resalignText, output.text);
    };
  },

  afterConfigureGraph() {
    for (const [, node] of nodes(app.rootGraph ?? app.graph)) if (node.resalignLive) attach(node);
  },
});
