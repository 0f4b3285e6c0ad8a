"""Reports of a probe: HTML, Markdown, JSON; model cards."""
