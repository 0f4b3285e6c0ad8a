// Looks whether a job runs that this page does not show yet (started in another window, say), and
// then presses the button that follows it. All else is gradio's.
(() => {
  const EVERY = 3000; // milliseconds

  const find = (selector) => {
    const app = document.querySelector("gradio-app");
    return (app?.shadowRoot ?? document).querySelector(selector) ?? document.querySelector(selector);
  };

  /** Is the panel behind what the server says? */
  const behind = (state) =>
    state.status === "running" && find(".ra-job")?.dataset.status !== "running";

  async function look() {
    const button = find("#resalign_follow");
    if (!button || document.hidden) return;
    try {
      const answer = await fetch("resalign/state", { cache: "no-store" });
      if (answer.ok && behind(await answer.json())) button.click();
    } catch {
      // the host restarts: the next look will tell
    }
  }

  setInterval(look, EVERY);
})();
