// Looks whether a job runs that this page does not show (it was started in another window, or the
// connection broke), and then presses the button that follows it. All else is gradio's.
(() => {
  const EVERY = 3000; // milliseconds
  // A1111 with --api ends its start in an error when a request comes in a certain second of it, so
  // a page that was left open must not ask a host that starts.
  const AFTER_A_BREAK = 30000;

  const find = (selector) => {
    const app = document.querySelector("gradio-app");
    return (app?.shadowRoot ?? document).querySelector(selector) ?? document.querySelector(selector);
  };

  let seen = -1; // revision that the panel showed when we last looked

  /** Is the panel behind what the server says, and not about to catch up by itself? */
  function behind(state) {
    const panel = find(".ra-job")?.dataset ?? {};
    const shown = Number(panel.revision ?? -1);
    const stuck = shown === seen && panel.status === "running" && state.revision > shown;
    seen = shown;
    return stuck || (state.status === "running" && panel.status !== "running");
  }

  /** On the host's other tabs: why its pictures wait. The note opens our tab. */
  function remind(state) {
    const tab = find("#tab_resalign"); // none where the tab runs without a host
    let note = find("#resalign_waiting");
    const waits = state?.waits && tab && tab.offsetParent === null;
    if (!waits) return note?.remove();
    if (!note) {
      note = document.createElement("button");
      note.id = "resalign_waiting";
      note.type = "button";
      note.style.cssText = "position:fixed;left:12px;bottom:12px;z-index:1000;padding:8px 14px;border:0;" +
        "border-radius:8px;background:#1f2937;color:#fff;font:14px system-ui,sans-serif;cursor:pointer";
      note.addEventListener("click", () => {
        const app = document.querySelector("gradio-app");
        const buttons = [...(app?.shadowRoot ?? document).querySelectorAll("#tabs > .tab-nav button, #tabs [role=tab]")];
        buttons.find((one) => one.textContent.trim() === "ResAlign")?.click();
        note.remove();
      });
      document.body.append(note);
    }
    const steps = state.total > 1 ? ` (step ${state.step} of ${state.total})` : "";
    note.textContent = `ResAlign is at work${steps}: pictures wait until it is done.`;
  }

  let quiet = 0; // looks to leave out
  let last = {}; // the host's last answer
  let away = false; // it did not answer when we last looked

  /** Above the panel: that the host does not answer, and what to do; nothing when it does again. */
  function tell(gone) {
    const note = find("#resalign_away");
    if (!gone) return note?.remove();
    const panel = find("#resalign_job");
    if (note || !panel) return;
    const made = document.createElement("div");
    made.id = "resalign_away";
    made.className = "ra ra-note ra-error";
    made.setAttribute("role", "alert");
    const shown = find(".ra-job")?.dataset;
    const resumed = last.resumed ?? ["harden", "resume", "probe"]; // it never answered this page
    const again = resumed.includes(shown?.job) ? "press Resume to go on" : "start the job again";
    made.textContent = `${last.host ?? "The host"} does not answer. ` + (shown?.status === "running"
      ? `When it runs again, ${again}; what is shown below is its last word.`
      : "This page goes on by itself when it runs again.");
    panel.before(made);
  }

  async function look() {
    const button = find("#resalign_catch_up");
    if (!button || document.hidden || quiet-- > 0) return;
    quiet = 0;
    try {
      const answer = await fetch("resalign/state", { cache: "no-store" });
      if (answer.status >= 500) throw new Error("a proxy answers, and not the host");
      const state = answer.ok ? await answer.json() : null;
      last = state ?? last;
      away = false;
      tell(false);
      remind(state);
      if (state && behind(state)) button.click();
    } catch {
      remind(null);
      if (away) tell(true); // the second time: once may be a short break
      away = true;
      quiet = AFTER_A_BREAK / EVERY;
    }
  }

  // On a narrow window the panel lies above the form: bring it into sight after a start.
  const STARTS = [
    "harden", "check", "resume", "probe", "try_lora", "export", "save_lora", "audit", "labels", "pack",
  ];
  document.addEventListener("click", (event) => {
    const pressed = event.composedPath().map((part) => part.id ?? "");
    if (pressed.includes("resalign_show_report")) {
      const before = find("#resalign_report_view iframe");
      return showReport(before, 40);
    }
    if (!STARTS.some((name) => pressed.includes(`resalign_${name}`))) return;
    refusals(true);
    bringIntoSight(20);
  });

  // A refusal of what the form held is out of date once the form changes. It is hidden, not taken
  // away: gradio would not show the same text a second time.
  const refusals = (shown) => {
    const pages = find("#resalign_pages");
    for (const note of pages?.querySelectorAll("[id^=resalign_][id$=_message] .ra-error") ?? [])
      note.style.display = shown ? "" : "none";
  };
  for (const kind of ["input", "change", "mousedown"])
    document.addEventListener(kind, (event) => {
      const path = event.composedPath();
      const inForm = path.some((part) => part.id === "resalign_pages");
      const chosen = kind !== "mousedown" || path.some((part) => part.role === "option");
      if (inForm && chosen) refusals(false);
    });

  /** Scroll to the panel once it shows the job that was started; looks so many times. */
  function bringIntoSight(times) {
    setTimeout(() => {
      if (find(".ra-job")?.dataset.status !== "running") return times && bringIntoSight(times - 1);
      const panel = find("#resalign_job");
      const top = panel?.getBoundingClientRect().top ?? 0;
      if (top < 0 || top > innerHeight * 0.8) panel.scrollIntoView({ behavior: "smooth", block: "start" });
    }, 300);
  }

  /** Scroll to the report once it is there; it stands below the forms of its page. */
  function showReport(before, times) {
    setTimeout(() => {
      const frame = find("#resalign_report_view iframe");
      if (frame && (frame !== before || times < 30))
        return find("#resalign_report_view").scrollIntoView({ behavior: "smooth", block: "start" });
      if (times) showReport(before, times - 1);
    }, 100);
  }

  setInterval(look, EVERY);
})();
