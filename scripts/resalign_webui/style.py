"""The style of the page: colours of the host where it has them, our own classes (`ra-...`)."""

STYLE = """<style>
.ra { font-size: 14px; line-height: 1.45; color: var(--body-text-color); overflow-wrap: anywhere; }
.ra p { margin: 0 0 .5em; }
.ra .ra-muted, .ra figcaption { opacity: .85; font-size: 12px; }
#resalign_pages { --quiet: color-mix(in srgb, var(--body-text-color) 67%, transparent);
  --block-info-text-color: var(--quiet); --input-placeholder-color: var(--quiet);
  --checkbox-label-padding: 4px 10px; }
#resalign_pages .generating, #resalign_job .generating { display: none; }
#resalign_job .pending { opacity: 1 !important; }
#resalign_now, #resalign_style { display: none; }
#resalign_catch_up { display: none !important; }
#resalign_missing:not(:has(.ra)), [id^=resalign_about_]:not(:has(.ra)),
[id^=resalign_][id$=_message]:not(:has(.ra)) { display: none; }
#resalign_next { flex: 1 1 100%; }
.gradio-container:has(.ra-job) { overflow: clip; }
@media (min-width: 861px) {
  #resalign_side:has(.ra-job) { position: sticky; top: 0; align-self: flex-start;
    max-height: 100vh; overflow: hidden auto; scrollbar-gutter: stable;
    flex-wrap: nowrap; }
  #resalign_side:has(.ra-job) > * { flex-shrink: 0; }
}
@media (max-width: 860px) {
  #resalign_job, #resalign_report_view { scroll-margin-top: 160px; }
  .gradio-container:has(.ra-job) #resalign_side { display: contents; }
  .gradio-container:has(.ra-job) #resalign_side > * { order: -1; }
  .gradio-container:has(.ra-job) #resalign_side > #resalign_controls { order: -2;
    position: sticky; top: 0; z-index: 100; padding: 6px 0;
    background: var(--body-background-fill); }
  .gradio-container:has(.ra-running) #resalign_now { display: block; flex: 1 1 100%; }
  .gradio-container:has(.ra-job) #resalign_follow { display: none; }
}
.ra .ra-track { height: 10px; border-radius: 5px; background: var(--border-color-primary);
  overflow: hidden; margin: .4em 0 .6em; }
.ra .ra-fill { height: 100%; border-radius: 5px; transition: width .3s; --fill: #4c9be8;
  background: color-mix(in srgb, var(--fill) 65%, var(--body-text-color)); }
.ra-done.ra-good .ra-fill { --fill: #5fb760; } .ra-failed .ra-fill { --fill: #e8664c; }
.ra-stopped .ra-fill, .ra-doubtful .ra-fill { --fill: #d9a441; }
.ra svg { width: 100%; max-width: 620px; height: auto; display: block; }
.ra svg text { fill: var(--body-text-color); opacity: .72; font-size: 11px; }
.ra svg .grid, .ra svg .axis { stroke: var(--border-color-primary); stroke-width: 1; }
.ra .ra-legend { display: flex; flex-wrap: wrap; gap: 2px 14px; margin: 0 0 .7em; font-size: 12px; }
.ra .ra-legend svg { display: inline-block; width: 22px; height: 4px; vertical-align: middle;
  margin-right: 5px; }
.ra .ra-pictures { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr));
  gap: 8px; margin: .5em 0; max-width: 440px; }
.ra .ra-sheets { grid-template-columns: minmax(0, 1fr); max-width: none; }
.ra figure { margin: 0; } .ra img { width: 100%; height: auto; border-radius: 6px; margin: 0;
  display: block; }
.ra pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: 12px; margin: .4em 0;
  max-height: 280px; overflow: auto; background: var(--background-fill-secondary);
  color: var(--body-text-color); border: 1px solid var(--border-color-primary); border-radius: 6px;
  padding: 8px; }
.ra.ra-note { border-left: 4px solid #4c9be8; padding: 6px 10px; border-radius: 4px;
  background: var(--background-fill-secondary); }
.ra .ra-lead { font-weight: 600; font-size: 15px; }
.ra summary { cursor: pointer; }
.ra.ra-doubtful { border-left-color: #d9a441; }
.ra.ra-error { border-left-color: #e8664c; } .ra.ra-good { border-left-color: #5fb760; }
.ra table { border-collapse: collapse; width: 100%; border: none !important; }
.ra tr { border: none !important; background: none !important; }
.ra td, .ra th { text-align: left; vertical-align: top; padding: 2px 14px 2px 0 !important;
  border: none !important; color: var(--body-text-color); background: none; }
.ra th { font-weight: 600; white-space: nowrap; }
.ra iframe { width: 100%; height: 75vh; min-height: 480px; border: 1px solid
  var(--border-color-primary); border-radius: 6px; background: #fff; }
.ra a { color: var(--link-text-color); text-decoration: underline; }
</style>"""
