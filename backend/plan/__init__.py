"""The plan of a run: values, their checks, file format, presets and help."""
