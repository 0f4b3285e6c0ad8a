"""What a run is asked to do: values, their checks, file format, presets and help."""
