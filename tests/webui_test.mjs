// The tab's own script, run against a page that is made up: when does it press the button?

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import test from "node:test";
import vm from "node:vm";

const SOURCE = readFileSync(new URL("../javascript/resalign.js", import.meta.url), "utf8");

/** A page whose panel has these data (null: none yet); `look(state)` is one look of the script. */
function page(panel) {
  const made = { clicks: 0, asked: 0, panel, answer: null, hidden: false, tab: null, note: null, away: null };
  const button = { click: () => made.clicks++ };
  let timer = null;
  const document = {
    get hidden() { return made.hidden; },
    addEventListener() {},
    body: { append: (note) => { made.note = note; } },
    createElement: () => ({
      style: {}, addEventListener() {}, setAttribute() {},
      remove() { made[this.id === "resalign_away" ? "away" : "note"] = null; },
    }),
    querySelector(selector) {
      if (selector === "#resalign_catch_up") return button;
      if (selector === ".ra-job") return made.panel && { dataset: made.panel };
      if (selector === "#tab_resalign") return made.tab;
      if (selector === "#resalign_waiting") return made.note;
      if (selector === "#resalign_away") return made.away;
      if (selector === "#resalign_job") return { before: (note) => { made.away = note; } };
      return null; // no gradio-app: later versions have no shadow root
    },
  };
  const fetch = async () => {
    made.asked++;
    if (made.answer === null) throw new TypeError("failed to fetch");
    const status = typeof made.answer === "number" ? made.answer : 200;
    return { ok: status === 200, status, json: async () => made.answer };
  };
  vm.runInNewContext(SOURCE, { document, fetch, setInterval: (look) => { timer = look; } });
  made.look = (state) => { made.answer = state; return timer(); };
  return made;
}

test("a job that the page does not show is followed", async () => {
  for (const panel of [null, { status: "done", revision: "4" }]) {
    const made = page(panel);
    await made.look({ status: "running", revision: 9 });
    assert.equal(made.clicks, 1);
  }
});

test("a panel that keeps up is left alone", async () => {
  const made = page({ status: "running", revision: "5" });
  await made.look({ status: "running", revision: 6 });
  made.panel = { status: "running", revision: "7" };
  await made.look({ status: "running", revision: 8 });
  made.panel = { status: "done", revision: "9" };
  await made.look({ status: "done", revision: 9 });
  assert.equal(made.clicks, 0);
});

test("a panel that has stopped moving is set going, also to show the end", async () => {
  for (const status of ["running", "done"]) {
    const made = page({ status: "running", revision: "5" });
    await made.look({ status, revision: 6 });
    assert.equal(made.clicks, 0);
    await made.look({ status, revision: 9 });
    assert.equal(made.clicks, 1);
  }
});

test("nothing is done while the page is hidden, the host is away, or nobody has logged in", async () => {
  const made = page(null);
  for (const answer of [401, { status: null, revision: null }, null]) await made.look(answer);
  made.hidden = true;
  await made.look({ status: "running", revision: 1 });
  assert.equal(made.clicks, 0);
});

test("a host that was away is left in peace while it starts, and then looked at again", async () => {
  const made = page(null);
  await made.look(null);
  for (let number = 0; number < 10; number++) await made.look({ status: "running", revision: 1 });
  assert.deepEqual([made.asked, made.clicks], [1, 0]);
  await made.look({ status: "running", revision: 1 });
  assert.deepEqual([made.asked, made.clicks], [2, 1]);
});

test("a host that does not answer is told in the panel, until it answers again", async () => {
  for (const gone of [null, 502]) {
    const made = page({ status: "running", job: "probe", revision: "5" });
    const later = async (answer) => {
      for (let number = 0; number < 11; number++) await made.look(answer);
    };
    const running = { status: "running", revision: 5, host: "Forge", resumed: ["probe"] };
    await made.look(running);
    await made.look(gone);
    assert.equal(made.away, null, "once may be a short break");
    await later(gone);
    assert.equal(made.away.textContent, "Forge does not answer. When it runs again, press Resume to go on; "
      + "what is shown below is its last word.");
    made.away = null;
    made.panel.job = "export"; // whatever the last answer was about
    await later(gone);
    assert.match(made.away.textContent, /When it runs again, start the job again; /);
    assert.equal(made.away.className, "ra ra-note ra-error");
    await later({ ...running, status: "stopped", revision: 6 });
    assert.equal(made.away, null);
    made.panel = { status: "stopped", revision: "6" };
    await made.look(gone);
    await later(gone);
    assert.match(made.away.textContent, /^Forge does not answer. This page goes on by itself/);
  }
});

test("a host that never answered this page is told to be gone too, with what a running job needs", async () => {
  const made = page({ status: "running", job: "harden", revision: "5" });
  for (let number = 0; number < 12; number++) await made.look(null);
  assert.match(made.away.textContent, /^The host does not answer. When it runs again, press Resume to go on; /);
});

test("on the host's other tabs a note says why pictures wait, and goes when they do not", async () => {
  const running = { status: "running", waits: true, step: 3, total: 20, revision: 5 };
  const made = page({ status: "running", revision: "5" });
  await made.look(running);
  assert.equal(made.note, null, "the tab without a host draws no pictures");
  made.tab = { offsetParent: null };
  await made.look(running);
  assert.equal(made.note.textContent, "ResAlign is at work (step 3 of 20): pictures wait until it is done.");
  made.tab = { offsetParent: {} };
  await made.look(running);
  assert.equal(made.note, null, "our own tab shows the panel");
  made.tab = { offsetParent: null };
  for (const ended of [{ ...running, status: "done", waits: false }, { ...running, waits: false }, null]) {
    await made.look(running);
    await made.look(ended);
    assert.equal(made.note, null);
  }
});

test("a refusal is hidden once the form changes, and may be shown again", () => {
  const on = {}, note = { style: {} };
  const pages = { id: "resalign_pages", querySelectorAll: () => [note] };
  const document = {
    addEventListener: (kind, call) => { on[kind] = call; },
    querySelector: (selector) => (selector === "#resalign_pages" ? pages : null),
  };
  vm.runInNewContext(SOURCE, { document, setInterval() {}, setTimeout() {} });
  const field = { id: "resalign_seed" }, option = { id: "", role: "option" };
  const event = (...path) => ({ composedPath: () => path });
  for (const [kind, path, hidden] of [
    ["input", [field, pages], true], ["change", [field, pages], true],
    ["mousedown", [option, pages], true], ["mousedown", [field, pages], false],
    ["input", [{ id: "another" }], false],
  ]) {
    on.click(event({ id: "resalign_harden" }, pages));
    assert.equal(note.style.display, "");
    on[kind](event(...path));
    assert.equal(note.style.display, hidden ? "none" : "", `${kind} ${path[0].id}`);
  }
});

test("a report that is shown is scrolled into sight, once it is there", async () => {
  const waiting = [], made = { pressed: null, frame: null, scrolled: 0 };
  const document = {
    addEventListener: (kind, call) => { if (kind === "click") made.pressed = call; },
    querySelector: (selector) =>
      selector === "#resalign_report_view iframe" ? made.frame
        : selector === "#resalign_report_view" ? { scrollIntoView: () => made.scrolled++ } : null,
  };
  vm.runInNewContext(SOURCE, { document, setInterval() {}, setTimeout: (call) => waiting.push(call) });
  made.pressed({ composedPath: () => [{ id: "resalign_show_report" }] });
  waiting.shift()();
  assert.equal(made.scrolled, 0, "nothing is there yet");
  made.frame = {};
  waiting.shift()();
  assert.deepEqual([made.scrolled, waiting.length], [1, 0]);
});
