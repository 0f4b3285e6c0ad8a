// Run by tests/test_web_js.py: node --test tests/web_test.mjs
import assert from "node:assert/strict";
import { test } from "node:test";
import * as view from "../web/resalign_view.js";

test("time is told as people say it", () => {
  assert.equal(view.timeText(8.4), "8 s");
  assert.equal(view.timeText(180), "3 min");
  assert.equal(view.timeText(7500), "2 h 5 min");
  assert.equal(view.timeText(null), "");
  assert.equal(view.timeText(NaN), "");
});

test("the status names stage, step, what is left, and how it ended", () => {
  assert.equal(view.statusText(null), "not run yet");
  const running = { status: "running", stage: "harden", step: 3, total: 9, micro_step: 2, micro_total: 5, message: "", left: 40 };
  assert.equal(view.statusText(running), "harden 3 of 9 · 2/5 · about 40 s left");
  assert.equal(view.statusText({ status: "failed", message: "no room", seconds: 3 }), "failed: no room (after 3 s)");
});

test("a stop is said once, with the time that went by", () => {
  const state = { status: "stopped", message: "stopped after step 0 of 20. All that is done is kept", seconds: 180 };
  assert.equal(view.statusText(state), "stopped after step 0 of 20. All that is done is kept (after 3 min)");
});

test("what one stage counts is not the whole job", () => {
  const state = { kind: "probe", status: "running", stage: "encoding", step: 8, total: 8, share: null };
  assert.equal(view.share(state), 0);
});

test("a running job's own line is shown, with what is left of all of it", () => {
  const running = { status: "running", line: "drawing example pictures of weapons 16 of 32 (stage 1 of 3)", left: 130 };
  assert.equal(view.statusText(running), `${running.line} · about 2 min left`);
  assert.equal(view.statusText({ ...running, left: null }), running.line);
});

test("a node that had nothing to do says that its run is kept", () => {
  const output = { resalign_run: [{ key: "a", steps: 4, said: "nothing was removed in 4 steps" }] };
  assert.equal(view.statusText(view.reused(null, output)), "kept: nothing to do. nothing was removed in 4 steps");
  const report = { verdict: "Not safe to publish: it shows it again.", kind: "doubtful" };
  const probed = view.reused(null, { resalign_report: [report] });
  assert.equal(view.statusText(probed), report.verdict, "a probe's verdict comes before anything else");
  assert.equal(probed.verdict, "doubtful");
  assert.equal(view.statusText({ status: "done", kind: "probe", message: "Removed.", verdict: "good", seconds: 3 }), "Removed. (took 3 s)");
  assert.equal(view.reused({ status: "done" }, output), null, "what it shows says more");
  assert.equal(view.reused(null, { text: ["written"] }), null);
});

test("a run that is too short does not end in done", () => {
  const state = { status: "done", message: "Test run, not safe to publish", verdict: "doubtful", seconds: 3 };
  assert.equal(view.statusText(state), "Test run, not safe to publish (took 3 s)");
});

test("harm is a share of what there is to unlearn, on a fixed axis", () => {
  const state = { scale: [-0.1, -0.5], figures: { harm: -0.3, harm_after: -0.2, q: 0.5 },
    curves: { harm: [[1, -0.1], [2, -0.5]], "harm after": [[2, 9]], retain: [[1, 0.2]] } };
  assert.deepEqual(view.figures(state).map(({ name, value }) => [name, value]), [
    ["unlearned \u2191", "50 %"], ["after fine-tuning", "25 %"], ["relapse \u2193", "50 %"],
  ]);
  const [first, second] = view.charts(state);
  assert.deepEqual(first, { harm: [[1, 0], [2, 1]], "harm after": [[2, 0]] });
  assert.deepEqual(second, { retain: [[1, 0.2]] });
  const [line] = view.polylines({ harm: [[0, 0.5], [2, 1]] }, 104, 54, 4, [0, 1]);
  assert.equal(line.points, "4.0,27.0 100.0,4.0");
  for (const scale of [null, [1, 1], [NaN, 0]]) assert.equal(view.unlearned({ scale }, 1), null);
});

test("a state says of how many steps its losses are averages", () => {
  const state = { scale: [-0.1, -0.5], average: 10, figures: { harm: -0.3 } };
  assert.match(view.figures(state)[0].title, /^share of the concept's loss, average of 10 steps: 0 %/);
  assert.equal(view.averageText({ average: 1 }) + view.averageText(null), "");
});

test("an axis of losses begins at 0 and ends at a round number, however small they are", () => {
  const axis = (...values) => view.lossAxis({ retain: values.map((value, at) => [at, value]) });
  assert.deepEqual(axis(0, 0), [0, 0.001]);
  assert.deepEqual(axis(0, 1e-6), [0, 0.001]);
  assert.deepEqual(axis(0, 0.0042), [0, 0.005]);
  assert.deepEqual(axis(0.3, 0.3), [0, 0.5]);
  assert.deepEqual(axis(-0.3), [-0.5, 0]);
  assert.deepEqual(axis(-0.02, 0.3), [-0.02, 0.5]);
});

test("what fails outside a node is shown with what to do next", () => {
  const running = { status: "running", step: 9, total: 20, curves: { harm: [[1, 0], [9, 1]] }, line: "x", left: 3 };
  const shown = view.failed(running, "out of memory\n");
  assert.equal(view.statusText(shown), "failed: out of memory Run the workflow again to continue from step 9.");
  assert.equal(view.statusText(view.failed(null, "connect a MODEL")), "failed: connect a MODEL");
  assert.equal(view.failed(running, "gone", "lost").status, "lost");
});

test("a finished node that had nothing to do tells no time", () => {
  const state = { status: "done", message: "kept from an earlier run", seconds: null };
  assert.equal(view.statusText(state), "done: kept from an earlier run");
});

test("the bar follows whole and small steps, and is full at the end", () => {
  assert.equal(view.share(null), null);
  assert.equal(view.share({ status: "running", step: 1, total: 20, share: 0.3 }), 0.3, "of the whole job");
  assert.equal(view.share({ status: "running", stage: "preview", step: 0, total: 0, share: 0.3 }), 0.3, "in a preview too");
  assert.equal(view.share({ status: "running", step: 1, total: 4, micro_step: 1, micro_total: 2 }), 0.375);
  assert.equal(view.share({ status: "running", step: 9, total: 4 }), 1);
  assert.equal(view.share({ status: "done", step: 0, total: 4 }), 1);
});

test("the sentence below the curves is that of the state, and there is none without curves", () => {
  assert.equal(view.hintOf({ hint: "Nothing is removed yet.", curves: { harm: [[1, 0.5]] } }), "Nothing is removed yet.");
  for (const state of [null, {}, { hint: "x", curves: {} }, { curves: { harm: [[1, 0.5]] } }])
    assert.equal(view.hintOf(state), "");
});

test("a hardening's figures have names, and relapse is what came back", () => {
  const state = { figures: { harm: -0.41234, harm_after: -0.3, q: 0.73, retain: 0.00042 } };
  assert.deepEqual(view.figures(state).map(({ name, value }) => [name, value]), [
    ["harm", "-0.412"], ["after fine-tuning", "-0.3"], ["relapse \u2193", "27 %"], ["drift of the rest", "4.2e-4"],
  ]);
  assert.deepEqual(view.figures({ figures: { q: 1.2 } }).map(({ value }) => value), ["0 %"]);
  assert.deepEqual(view.figures(null), []);
});

test("remarks on a run are lines of text, and there may be none", () => {
  assert.deepEqual(view.remarks({ remarks: ["expected    about 8 GiB", 3] }), ["expected: about 8 GiB", "3"]);
  const told = { status: "running", left: 30, remarks: ["device      cpu", "expected    about 41 s left"] };
  assert.deepEqual(view.remarks(told), ["device: cpu"]);
  const ended = { status: "done", remarks: ["expected    about 8 GiB", "warning: it spilled"] };
  assert.deepEqual(view.remarks(ended), ["warning: it spilled"]);
  for (const state of [null, {}, { remarks: "no list" }]) assert.deepEqual(view.remarks(state), []);
});

test("what stays has an axis of its own", () => {
  const curves = { harm: [[1, 2]], retain: [[1, 0.1]], "harm after": [[1, 3]] };
  assert.deepEqual(view.charts({ curves }).map(Object.keys), [["harm", "harm after"], ["retain"]]);
  assert.deepEqual(view.charts({ curves: {} }), []);
});

test("a cell's interval is told apart from its rate", () => {
  assert.deepEqual(view.cellParts("35 % (32 to 39 %, n = 576)"), ["35 %", "32 to 39 %, n = 576"]);
  assert.deepEqual(view.cellParts("-"), ["-", ""]);
});

test("the rate of a cell is read from its text", () => {
  assert.equal(view.rateOf("37.5 % (20 to 60)"), 0.375);
  assert.equal(view.rateOf("-"), null);
});

test("no two of twelve curves look alike", () => {
  const curves = Object.fromEntries([...Array(12).keys()].map((i) => [`attack ${i}`, [[0, i], [1, i]]]));
  const looks = view.polylines(curves, 100, 50).map(({ colour, dash }) => `${colour} ${dash}`);
  assert.equal(new Set(looks).size, 12);
  assert.equal(looks.filter((one) => one.endsWith(" ")).length, 6, "the first six are solid");
});

test("curves fill their box, and what is not finite is left out", () => {
  const [line] = view.polylines({ harm: [[0, 0], [1, NaN], [2, 10]] }, 110, 60);
  assert.equal(line.points, "5.0,55.0 105.0,5.0");
  assert.equal(line.lone, false);
  assert.deepEqual(view.polylines({}, 100, 50), []);
  assert.deepEqual(view.polylines(undefined, 100, 50), []);
  assert.equal(view.polylines({ a: [[1, 5]] }, 100, 50)[0].points, "50.0,25.0 50.0,25.0");
});

test("a lone point is a dot that lies inside the plot, also at 0 and 100 %", () => {
  for (const rate of [0, 1]) {
    const curves = { "original: before": [[0, rate]], "original: LoRA": [[0, rate], [2, rate]] };
    const [dot] = view.polylines(curves, 100, 50, 5, [0, 1]);
    const [x, y] = dot.points.split(" ")[0].split(",").map(Number);
    assert.ok(dot.lone && x >= 4 && x <= 96 && y >= 4 && y <= 46, dot.points);
  }
});

test("a report becomes rows of text", () => {
  const report = { columns: ["original", "hardened"], rows: [{ attack: "LoRA", cells: ["9 %", null] }] };
  assert.deepEqual(view.reportRows(report), [["after", "original", "hardened"], ["LoRA", "9 %", ""]]);
  assert.deepEqual(view.reportRows(undefined), []);
});

test("only our own reports are linked", () => {
  const good = "/resalign/report/0123456789abcdef0123/report.html";
  assert.equal(view.reportUrl({ url: good }), good);
  for (const url of ["javascript:alert(1)", "https://example.org/", `/x${good}`, `${good}?a`, undefined])
    assert.equal(view.reportUrl({ url }), "");
});

test("a curve that others cover is drawn wider, up to a bound", () => {
  assert.deepEqual(view.covered([["a", "b"], ["c", "d", "e", "f", "g", "h"]]),
    { a: 1, b: 0, c: 3, d: 3, e: 3, f: 2, g: 1, h: 0 });
  assert.deepEqual(view.covered(undefined), {});
  assert.deepEqual(view.covered(["ab", 3]), {});
});
