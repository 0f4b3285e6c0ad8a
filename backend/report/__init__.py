"""The probe for a reader and for a program: HTML, Markdown, JSON."""
