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
  assert.equal(view.statusText(running), "harden 3 of 9 (2/5) about 40 s left");
  assert.equal(view.statusText({ status: "failed", message: "no room", seconds: 3 }), "failed: no room (3 s)");
});

test("curves fill their box, and what is not finite is left out", () => {
  const [line] = view.polylines({ harm: [[0, 0], [1, NaN], [2, 10]] }, 104, 54);
  assert.equal(line.points, "4.0,50.0 100.0,4.0");
  assert.deepEqual(view.polylines({}, 100, 50), []);
  assert.deepEqual(view.polylines(undefined, 100, 50), []);
  assert.equal(view.polylines({ a: [[1, 5]] }, 100, 50)[0].points, "50.0,25.0");
});

test("a report becomes rows of text", () => {
  const report = { columns: ["original", "hardened"], rows: [{ attack: "LoRA", cells: ["9 %", null] }] };
  assert.deepEqual(view.reportRows(report), [["attack", "original", "hardened"], ["LoRA", "9 %", ""]]);
  assert.deepEqual(view.reportRows(undefined), []);
});

test("only our own reports are linked", () => {
  const good = "/resalign/report/0123456789abcdef0123/report.html";
  assert.equal(view.reportUrl({ url: good }), good);
  for (const url of ["javascript:alert(1)", "https://example.org/", `/x${good}`, `${good}?a`, undefined])
    assert.equal(view.reportUrl({ url }), "");
});
