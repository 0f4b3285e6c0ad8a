// What our widgets show, as plain values and elements. No import, so that it can be tested alone.

const COLOURS = ["#4c9be8", "#e8664c", "#5fb760", "#b58be0", "#d9a441", "#5bc0be"];

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
  if (state.status !== "running") return `${state.status}: ${state.message} (${timeText(state.seconds)})`;
  const parts = [state.stage || "starting"];
  if (state.total > 0 && state.stage) parts.push(`${state.step} of ${state.total}`);
  if (state.micro_total > 0) parts.push(`(${state.micro_step}/${state.micro_total})`);
  if (state.message) parts.push(state.message);
  const left = timeText(state.left);
  if (left) parts.push(`about ${left} left`);
  return parts.join(" ");
}

/** The smallest and largest finite value of curves [[x, y], ...]; null where there is none. */
export function bounds(curves) {
  const points = Object.values(curves ?? {}).flat().filter((p) => p.every(Number.isFinite));
  if (!points.length) return null;
  const xs = points.map((p) => p[0]);
  const ys = points.map((p) => p[1]);
  return { x: [Math.min(...xs), Math.max(...xs)], y: [Math.min(...ys), Math.max(...ys)] };
}

/** Curves as polylines in a box: [{name, colour, points: "x,y x,y"}]. Not finite: left out. */
export function polylines(curves, width, height, pad = 4) {
  const box = bounds(curves);
  if (!box) return [];
  const scale = ([low, high], value, size) =>
    high > low ? pad + ((value - low) / (high - low)) * (size - 2 * pad) : size / 2;
  return Object.entries(curves).map(([name, points], index) => ({
    name,
    colour: COLOURS[index % COLOURS.length],
    points: points
      .filter((p) => p.every(Number.isFinite))
      .map(([x, y]) => [scale(box.x, x, width), height - scale(box.y, y, height)])
      .map(([x, y]) => `${x.toFixed(1)},${y.toFixed(1)}`)
      .join(" "),
  }));
}

/** The rows of a report's table, header first; every cell is text. */
export function reportRows(report) {
  if (!report || !Array.isArray(report.rows)) return [];
  const header = ["attack", ...(report.columns ?? [])];
  return [header, ...report.rows.map((row) => [row.attack, ...(row.cells ?? [])])].map((row) =>
    row.map((cell) => String(cell ?? "")),
  );
}

/** An address of our own server's reports, or "" for anything else. */
export function reportUrl(report) {
  const url = String(report?.url ?? "");
  return /^\/resalign\/report\/[0-9a-f]{20}\/report\.html$/.test(url) ? url : "";
}

/** An element with text; never markup. */
function element(tag, className, text = "") {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text) made.textContent = text;
  return made;
}

/** Draw a working node's state into `root`. */
export function drawState(root, state) {
  const status = element("div", "resalign-status", statusText(state));
  const parts = [status];
  const lines = polylines(state?.curves, 260, 90);
  if (lines.length) {
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    svg.setAttribute("viewBox", "0 0 260 90");
    svg.setAttribute("role", "img");
    const legend = element("div", "resalign-legend");
    for (const line of lines) {
      const shape = document.createElementNS(svg.namespaceURI, "polyline");
      shape.setAttribute("points", line.points);
      shape.setAttribute("stroke", line.colour);
      svg.append(shape);
      const entry = element("span", "", line.name);
      entry.style.setProperty("--colour", line.colour);
      legend.append(entry);
    }
    svg.setAttribute("aria-label", `curves: ${lines.map((line) => line.name).join(", ")}`);
    parts.push(svg, legend);
  }
  const pictures = (state?.pictures ?? []).filter((p) => /^data:image\/jpeg;base64,/.test(p.url));
  if (pictures.length) {
    const strip = element("div", "resalign-pictures");
    for (const picture of pictures) {
      const image = element("img");
      image.src = picture.url;
      image.title = picture.caption + (picture.flagged ? " (blurred)" : "");
      image.alt = picture.flagged ? "blurred picture" : picture.caption;
      strip.append(image);
    }
    parts.push(strip);
  }
  root.replaceChildren(...parts);
}

/** Draw a probe's report into `root`, with a link to its page. */
export function drawReport(root, report, href = (path) => path) {
  const parts = [element("div", "resalign-status", String(report?.headline ?? ""))];
  const rows = reportRows(report);
  if (rows.length > 1) {
    const table = element("table");
    rows.forEach((row, index) => {
      const line = element("tr");
      row.forEach((cell) => line.append(element(index ? "td" : "th", "", cell)));
      table.append(line);
    });
    parts.push(table);
  }
  const url = reportUrl(report);
  if (url) {
    const link = element("a", "", "open the whole report");
    link.href = href(url);
    link.target = "_blank";
    link.rel = "noopener";
    parts.push(link);
  }
  root.replaceChildren(...parts);
}

/** Draw lines of text, as an export or a file's record gives them. */
export function drawText(root, lines) {
  root.replaceChildren(element("pre", "", [].concat(lines ?? []).join("\n")));
}
