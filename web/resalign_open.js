// What happens once when a template of ours opens: its first column is shown at a size that can be
// read, and a checkpoint that is there is chosen. No import, so that it can be tested alone.
//
// ComfyUI fits a template's whole graph into the window and ignores the view in its file, where
// texts are too small to be drawn (front ends 1.49.6 and 1.58.1, loadGraphData). Templates carry
// `extra.resalign`, which is removed here, so that a saved workflow opens as its user left it.

const MARK = "template";
const LEFT = 75; // pixels under ComfyUI's sidebar
const TOP = 100; // and under its bar
const RIGHT = 15;
const LEAST = 0.75; // a scale at which texts can be read
const FRAMES = 40; // to wait for ComfyUI's own fit
const FIRST = /^[123] |^Read me$/;

// Files of other families than the example's, and our own exports, are not chosen
const SUITS = {
  "v1-5-pruned-emaonly-fp16.safetensors": (name) => !/xl|sd_?3|flux|pony|illustrious|anima|z_image|qwen|wan|cascade|svd|refiner|hardened/i.test(name),
  "sd_xl_base_1.0.safetensors": (name) => /xl/i.test(name) && !/refiner|hardened/i.test(name),
  "my_lora.safetensors": (name) => !/hardening|hardened/i.test(name),
};
const CHOICES = { CheckpointLoaderSimple: "ckpt_name", ResAlign_TryMyLora: "lora" };

/** The file to choose where the example's is not among `values`; null where it is, or none fits. */
export function substitute(values, wanted) {
  if (!Array.isArray(values) || values.includes(wanted)) return null;
  return values.find((name) => SUITS[wanted]?.(String(name))) ?? null;
}

/** Scale and offset at which [x, y, width, height] begins at the upper left of a window so wide. */
export function viewOf([x, y, width], window) {
  const scale = Math.min(1, Math.max(LEAST, (window - LEFT - RIGHT) / width));
  return { scale, offset: [LEFT / scale - x, TOP / scale - y] };
}

/** The box around boxes [x, y, width, height]; null where there is none. */
export function around(boxes) {
  if (!boxes.length) return null;
  const [left, top] = [0, 1].map((k) => Math.min(...boxes.map((box) => box[k])));
  const [right, bottom] = [0, 1].map((k) => Math.max(...boxes.map((box) => box[k] + box[k + 2])));
  return [left, top, right - left, bottom - top];
}

/** What a reader begins with: the note and the groups of the steps 1, 2 and 3. */
function beginning(graph) {
  const groups = (graph.groups ?? graph._groups ?? []).filter(({ title }) => FIRST.test(title));
  const notes = (graph.nodes ?? []).filter(({ type, title }) => type === "MarkdownNote" && FIRST.test(title));
  return around([...groups, ...notes].map(({ pos, size }) => [pos[0], pos[1], size[0], size[1]]));
}

function placeOf({ scale, offset }) {
  return [scale, ...offset].join();
}

/** Move the view when ComfyUI has moved it, which newer front ends do some frames later. */
function show(app, before) {
  let frames = 0;
  const { canvas, rootGraph: graph } = app;
  const step = () => {
    if (app.rootGraph !== graph || app.canvas.graph !== graph) return; // another was opened
    if (placeOf(canvas.ds) === before && ++frames < FRAMES) return void requestAnimationFrame(step);
    const box = beginning(graph);
    if (!box) return;
    const { scale, offset } = viewOf(box, canvas.canvas.getBoundingClientRect().width);
    canvas.ds.scale = scale;
    canvas.ds.offset = offset;
    canvas.setDirty(true, true);
  };
  step();
}

/** Choose files that are there, and say so. */
function choose(app) {
  for (const node of app.rootGraph.nodes ?? []) {
    const widget = node.widgets?.find(({ name }) => name === CHOICES[node.type]);
    const values = widget?.options?.values;
    const wanted = widget?.value;
    const found = substitute(typeof values === "function" ? values() : values, wanted);
    if (found === null) continue;
    widget.value = found;
    app.extensionManager?.toast?.add?.({
      severity: "info", summary: "ResAlign", life: 15000,
      detail: `${wanted}, which this template names, is not here. ${found} was chosen instead: is it the one you want?`,
    });
  }
}

/** ComfyUI's hooks around the opening of a workflow. */
export function opening(app) {
  let before = "";
  return {
    beforeConfigureGraph() {
      before = placeOf(app.canvas.ds);
    },
    afterConfigureGraph() {
      const extra = app.rootGraph?.extra;
      if (extra?.resalign !== MARK) return;
      delete extra.resalign;
      choose(app);
      if (app.extensionManager?.setting?.get?.("Comfy.EnableWorkflowViewRestore") !== false) show(app, before);
    },
  };
}

/** The names of templates by pack, ours in order: the server gives them as the disk does. */
export function ordered(templates, pack) {
  const names = templates?.[pack];
  if (!Array.isArray(names)) return templates;
  return { ...templates, [pack]: [...names].sort((a, b) => String(a).localeCompare(String(b), "en", { numeric: true })) };
}
