"""Checkpoint files: what they are, reading them strictly, writing them atomically."""
