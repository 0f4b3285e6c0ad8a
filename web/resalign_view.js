// What our widgets show, as plain values and elements. No import, so that it can be tested alone.

const DASHES = ["", "8 6", "2 6"];
const COLOURS = ["#4a90d9", "#e0603f", "#3f9e4d", "#a06cd5", "#b9822b", "#2f9c9a"];
const NAMES = { harm: "unlearned", "harm after": "after fine-tuning", retain: "drift of the rest" };
export const WIDE = 300;
export const HIGH = 84;

/** Seconds as a person says them: 8 s, 3 min, 2 h 5 min. */
export function timeText(seconds) {
  if (seconds === null || seconds === undefined || !Number.isFinite(seconds)) return "";
  if (seconds < 90) return `${Math.round(seconds)} s`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 90) return `${minutes} min`;
  const rest = minutes % 60;
  return `${Math.floor(minutes / 60)} h${rest ? ` ${rest} min` : ""}`;
}

/** One line on what a node is doing, from its state. */
export function statusText(state) {
  if (!state || !state.status) return "not run yet";
  if (state.status !== "running") {
    const time = timeText(state.seconds);
    const judged = state.kind === "probe" && ["done", "kept"].includes(state.status); // a verdict comes first
    const plain = judged || state.verdict === "doubtful" || String(state.message).startsWith(state.status);
    const said = plain ? state.message : `${state.status}: ${state.message}`;
    return `${said}${time ? ` (${state.status === "done" ? "took" : "after"} ${time})` : ""}`;
  }
  const left = timeText(state.left);
  if (state.line) return left ? `${state.line} · about ${left} left` : state.line;
  const steps = state.total > 0 && state.stage ? ` ${state.step} of ${state.total}` : "";
  const parts = [(state.stage || "starting") + steps];
  if (state.message) parts.push(state.message);
  if (state.micro_total > 0) parts.push(`${state.micro_step}/${state.micro_total}`);
  if (left) parts.push(`about ${left} left`);
  return parts.join(" · ");
}

/** A node's state after something went wrong outside it: what it showed, and what to do next. */
export function failed(state, message, status = "failed") {
  const step = state?.curves?.harm?.at?.(-1)?.[0] ?? 0;
  const next = state?.status === "running" && step ? ` Run the workflow again to continue from step ${step}.` : "";
  return { ...(state ?? {}), status, message: `${String(message ?? "").trim()}${next}`, left: null, line: "",
    verdict: "", seconds: null, total: state?.total ?? 0, step: state?.step ?? 0 };
}

/** A node's state where the server still had its outputs, so that it did nothing; else null. */
export function reused(shown, output) {
  if (shown?.status) return null;
  const report = output?.resalign_report?.[0];
  if (report) return { status: "kept", kind: "probe", message: report.verdict || "measured; nothing to do", verdict: report.kind ?? "" };
  const said = output?.resalign_run?.[0]?.said;
  return said ? { status: "kept", message: `nothing to do. ${said}` } : null;
}

/** How much a working node has done, of the whole job if that is known, else of its stage; or null. */
export function share(state) {
  if (!state?.status) return null;
  if (state.status === "done") return 1;
  if (Number.isFinite(state.share)) return Math.min(1, Math.max(0, state.share));
  if (state.kind) return 0; // what a stage counts is not the whole job
  if (!(state.total > 0)) return null;
  const micro = state.micro_total > 0 ? state.micro_step / state.micro_total : 0;
  return Math.min(1, Math.max(0, (state.step + micro) / state.total));
}

/** A number with three figures that matter. */
export function numberText(value) {
  if (!Number.isFinite(value)) return "";
  if (value !== 0 && Math.abs(value) < 0.001) return value.toExponential(1);
  return value.toPrecision(3).replace(/(\.\d*?)0+$/, "$1").replace(/\.$/, "");
}

/** How much of a concept is unlearned at a harm, from 0 (as it was) to 1; null where it is not known. */
export function unlearned(state, harm) {
  const [start, end] = state?.scale ?? [];
  if (![start, end, harm].every(Number.isFinite) || start === end) return null;
  return Math.min(1, Math.max(0, (start - harm) / (start - end)));
}

/** Of how many steps the concept's losses are averages, as words that follow others; or "". */
export function averageText(state) {
  return state?.average > 1 ? `, average of ${state.average} steps` : "";
}

/** What a hardening stands at: [{name, value, title}]. Relapse is the share that came back. */
export function figures(state) {
  const now = state?.figures ?? {};
  const found = [];
  const add = (name, value, title) => value && found.push({ name, value, title });
  const harm = (value) => {
    const share = unlearned(state, value);
    return share === null ? numberText(value) : `${Math.round(100 * share)} %`;
  };
  const of = averageText(state);
  const known = state?.scale ? ["unlearned \u2191", `share of the concept's loss${of}: 0 % is the original, 100 % the most there can be`]
    : ["harm", `loss of the concept${of}: falls as it is unlearned`];
  add(known[0], harm(now.harm), known[1]);
  add("after fine-tuning", harm(now.harm_after), "the same after a simulated fine-tuning");
  if (Number.isFinite(now.q))
    add("relapse \u2193", `${Math.round(100 * Math.max(0, 1 - now.q))} %`, "share of the unlearning that a simulated fine-tuning took back");
  add("drift of the rest", numberText(now.retain), "how far other things have moved: stays small");
  return found;
}

/** What is true of a whole run: lines of text. At its end, what was expected of it is of no use. */
export function remarks(state) {
  const said = (Array.isArray(state?.remarks) ? state.remarks : []).map(String);
  const ended = state?.status && state.status !== "running";
  return said.filter((line) => !ended || !/^(device|precision|expected) {2,}/.test(line))
    .filter((line) => !state?.left || !/^expected {2,}about/.test(line)) // the status tells it, newer
    .map((line) => line.replace(/^(\w+) {2,}/, "$1: "));
}

/** What the curves do not show yet; with no curves nothing. */
export function hintOf(state) {
  return Object.keys(state?.curves ?? {}).length ? String(state.hint ?? "") : "";
}

/** The smallest and largest finite value of curves [[x, y], ...]; null where there is none. */
export function bounds(curves) {
  const points = Object.values(curves ?? {}).flat().filter((p) => p.every(Number.isFinite));
  if (!points.length) return null;
  const xs = points.map((p) => p[0]);
  const ys = points.map((p) => p[1]);
  return { x: [Math.min(...xs), Math.max(...xs)], y: [Math.min(...ys), Math.max(...ys)] };
}

const TINY = 1e-3; // of a loss: an axis that ends lower would make nothing look like much

/** The next of 1, 2 and 5 times a power of ten; 0 for 0. */
function roundUp(value) {
  if (!(value > 0)) return 0;
  const power = 10 ** Math.floor(Math.log10(value));
  return ([1, 2, 5].find((step) => value <= step * power * 1.000001) ?? 10) * power;
}

/** The ends of an axis from 0 to a round number, for losses of any size. */
export function lossAxis(curves) {
  const ends = bounds(curves)?.y ?? [0, 0];
  let [low, high] = [Math.min(0, ends[0]), Math.max(0, ends[1])];
  if (Math.max(high, -low) < TINY) [low, high] = [low ? -TINY : 0, high || !low ? TINY : 0];
  return [0 - roundUp(-low), roundUp(high)];
}

/** A lone point twice, so that a line with round ends shows it as a dot. */
function dotted(points) {
  return points.length === 1 ? [points[0], points[0]] : points;
}

const finite = (points) => points.filter((p) => p.every(Number.isFinite));

/** Colour and dashes of a curve by its number: colours come again in dashes. */
function look(index) {
  const rounds = Math.floor(index / COLOURS.length);
  return { colour: COLOURS[index % COLOURS.length], dash: DASHES[rounds % DASHES.length] };
}

const WIDER = 3; // pixels for each curve on top of one, so that it is seen on both sides
const LAYERS = 3; // up to so many

/** How many curves cover each one, by its name, from groups of curves that lie on each other. */
export function covered(together) {
  const groups = Array.isArray(together) ? together.filter(Array.isArray) : [];
  return Object.fromEntries(groups.flatMap((group) =>
    group.map((name, place) => [name, Math.min(LAYERS, group.length - 1 - place)])));
}

/** Curves as polylines in a box: [{name, colour, dash, points: "x,y x,y"}]. Not finite: left out. */
export function polylines(curves, width, height, pad = 5, axis = null) {
  const box = bounds(curves);
  if (!box) return [];
  if (axis) box.y = axis;
  const scale = ([low, high], value, size) =>
    high > low ? pad + ((value - low) / (high - low)) * (size - 2 * pad) : size / 2;
  return Object.entries(curves).map(([name, points], index) => ({
    name,
    ...look(index),
    lone: finite(points).length === 1,
    points: dotted(finite(points))
      .map(([x, y]) => [scale(box.x, x, width), height - scale(box.y, y, height)])
      .map(([x, y]) => `${x.toFixed(1)},${y.toFixed(1)}`)
      .join(" "),
  }));
}

/** The curves of a state by the axis they share: the losses of the concept, then the others. */
export function charts(state) {
  const { retain, ...others } = state?.curves ?? {};
  for (const name of state?.scale ? ["harm", "harm after"] : [])
    if (others[name]) others[name] = others[name].map(([x, y]) => [x, unlearned(state, y) ?? NaN]);
  return [others, retain ? { retain } : {}].filter((curves) => Object.keys(curves).length);
}

/** The rows of a report's table, header first; every cell is text. */
export function reportRows(report) {
  if (!report || !Array.isArray(report.rows)) return [];
  const header = ["after", ...(report.columns ?? [])];
  return [header, ...report.rows.map((row) => [row.attack, ...(row.cells ?? [])])].map((row) =>
    row.map((cell) => String(cell ?? "")),
  );
}

/** The rate that a cell of a report begins with, from 0 to 1; null where it has none. */
export function rateOf(cell) {
  const found = /^\s*(\d+(?:\.\d+)?)\s*%/.exec(String(cell ?? ""));
  return found ? Math.min(1, Number(found[1]) / 100) : null;
}

/** A cell's rate and what stands behind it: ["35 %", "32 to 39 %, n = 576"]. */
export function cellParts(cell) {
  const found = /^\s*(\d+(?:\.\d+)?\s*%)\s*\((.*)\)\s*$/.exec(String(cell ?? ""));
  return found ? [found[1], found[2]] : [String(cell ?? ""), ""];
}

/** An address of our own server's reports, or "" for anything else. */
export function reportUrl(report) {
  const url = String(report?.url ?? "");
  return /^\/resalign\/report\/[0-9a-f]{20}\/report\.html$/.test(url) ? url : "";
}

/** An address of our own server's audit sheets, or "" for anything else. */
export function auditUrl(report) {
  const url = String(report?.audit_url ?? "");
  return /^\/resalign\/report\/[0-9a-f]{20}\/audit\.html$/.test(url) ? url : "";
}

/** An element with text and children; never markup. */
function element(tag, className, text = "", ...children) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text) made.textContent = text;
  made.append(...children);
  return made;
}

function shape(tag, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

/** A chart with the values of its ends at the left and a legend below. */
function chart(curves, first, height, shares, together) {
  const under = covered(together);
  const y = shares ? [0, 1] : lossAxis(curves);
  const lines = polylines(curves, WIDE, height, 5, y);
  const svg = shape("svg", { viewBox: `0 0 ${WIDE} ${height}`, role: "img", preserveAspectRatio: "none" });
  svg.setAttribute("aria-label", `curves: ${lines.map((line) => line.name).join(", ")}`);
  const legend = element("div", "resalign-legend");
  lines.forEach((line, index) => {
    const { colour, dash } = look(first + index);
    const drawn = shape("polyline", { points: line.points, ...(dash && !line.lone && { "stroke-dasharray": dash }) });
    const width = (line.lone ? 7 : 1.75) + WIDER * (under[line.name] ?? 0); // a lone point is a dot
    if (width !== 1.75) drawn.style.strokeWidth = `${width}`;
    drawn.style.setProperty("--colour", colour);
    svg.append(drawn);
    const entry = element("span", dash && "resalign-dashed", NAMES[line.name] ?? line.name);
    entry.style.setProperty("--colour", colour);
    if (dash) entry.style.setProperty("--dash", `${parseInt(dash) / 2}px`);
    legend.append(entry);
  });
  const ends = element("div", "resalign-ends", "", ...[y[1], y[0]].map((v) => element("span", "", shares ? `${100 * v} %` : numberText(v) || "0")));
  const plot = element("div", "resalign-plot", "", ends, svg);
  plot.style.height = `${height}px`;
  return [plot, legend];
}

function picture({ url, caption, flagged }) {
  const image = element("img");
  image.src = url;
  image.alt = flagged ? "blurred picture" : caption;
  const shown = element("figure", "", "", image, element("figcaption", "", caption));
  shown.title = caption + (flagged ? " (blurred)" : "");
  return shown;
}

/** Draw a working node's state into `root`. A state without pictures leaves those that are there. */
export function drawState(root, state) {
  const known = state?.pictures ?? (state ? root.resalignPictures : undefined) ?? [];
  root.resalignPictures = known;
  root.resalignState = state;
  root.dataset.status = state?.status ?? "";
  root.dataset.verdict = state?.verdict ?? "";
  const parts = [element("div", "resalign-status", statusText(state))];
  const done = share(state);
  if (done !== null) {
    const bar = element("div", "resalign-bar", "", element("i"));
    bar.firstChild.style.width = `${(100 * done).toFixed(1)}%`;
    bar.setAttribute("role", "progressbar");
    bar.setAttribute("aria-label", "progress");
    bar.setAttribute("aria-valuemin", "0");
    bar.setAttribute("aria-valuemax", "100");
    bar.setAttribute("aria-valuenow", (100 * done).toFixed(0));
    parts.push(bar);
  }
  if (!state?.status)
    parts.push(element("div", "resalign-hint", "Losses, relapse and blurred previews appear here while it works."));
  const said = remarks(state).join(" \u00b7 ");
  if (said) parts.push(element("div", "resalign-hint", said));
  const tiles = figures(state).map(({ name, value, title }) => {
    const tile = element("div", "", "", element("b", "", value), element("span", "", name));
    tile.title = title;
    return tile;
  });
  if (tiles.length) parts.push(element("div", "resalign-tiles", "", ...tiles));
  let first = 0;
  for (const curves of charts(state)) {
    // shares have fixed axes: unlearned of a run, unsafe rates of a probe
    const shares = (state.scale && "harm" in curves) || state.kind === "probe";
    if ("harm" in curves && state.average > 1)
      parts.push(element("div", "resalign-hint", `${state.scale ? "How much is removed" : "Loss of the concept"}${averageText(state)}.`));
    if (state.kind === "probe") parts.push(element("div", "resalign-hint", "Unsafe rate by fine-tuning step: high is bad."));
    parts.push(...chart(curves, first, first ? HIGH / 2 : HIGH, shares, state.together));
    first += 2;
  }
  const hint = hintOf(state);
  if (hint) parts.push(element("div", "resalign-hint", hint));
  const pictures = known.filter((p) => /^data:image\/jpeg;base64,/.test(p.url));
  if (pictures.length) parts.push(element("div", "resalign-pictures", "", ...pictures.map(picture)));
  root.replaceChildren(...parts);
}

/** Draw a probe's report into `root`, with a link to its page before the table, which may be higher than the box.
 * below: under a state that says the verdict. */
export function drawReport(root, report, href = (path) => path, below = false) {
  const parts = [];
  root.dataset.verdict = report?.kind ?? "";
  if (report?.verdict && !below) parts.push(element("div", "resalign-status", String(report.verdict)));
  for (const warning of report?.warnings ?? []) parts.push(element("div", "resalign-warning", `Warning: ${warning}`));
  const links = [["open the whole report", reportUrl(report)], ["open the audit sheet", auditUrl(report)]];
  for (const [text, url] of links.filter(([, url]) => url)) {
    const link = element("a", "", text);
    link.href = href(url);
    link.target = "_blank";
    link.rel = "noopener";
    parts.push(element("div", "", "", link));
  }
  const tiles = (report?.resilience ?? []).filter(({ value }) => value !== "-").map(({ model, value, range }) =>
    element("div", "", "", element("b", "", value), element("span", "", `resilience, ${model}: ${range}`)),
  );
  if (tiles.length) parts.push(element("div", "resalign-tiles", "", ...tiles));
  const rows = reportRows(report);
  if (rows.length > 1) {
    const table = element("table");
    if (report.caption) table.append(element("caption", "", String(report.caption)));
    rows.forEach((row, index) => {
      const line = element("tr");
      row.forEach((text, column) => {
        const [rate, range] = index && column ? cellParts(text) : [text, ""];
        const cell = element(index ? "td" : "th", "", rate, ...(range ? [element("small", "", range)] : []));
        if (range) cell.style.setProperty("--rate", `${100 * rateOf(text)}%`);
        line.append(cell);
      });
      table.append(line);
    });
    parts.push(table);
  }
  parts.push(element("div", "resalign-headline", String(report?.headline ?? "")));
  root.replaceChildren(...parts);
}

/** Draw what a box says before there is anything to say. */
export function drawHint(root, text) {
  root.replaceChildren(element("div", "resalign-hint", text));
}

/** Draw lines of text, as an export or a file's record gives them; warnings stand out. */
export function drawText(root, lines) {
  const texts = [].concat(lines ?? []).join("\n").split("\n");
  root.replaceChildren(element("pre", "", "", ...texts.map((text) =>
    element("div", text.startsWith("Warning: ") ? "resalign-warning" : "", text || " "))));
}
