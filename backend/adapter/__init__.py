"""The adapter θ: low-rank tensors by name, on, off, merged and in files."""
