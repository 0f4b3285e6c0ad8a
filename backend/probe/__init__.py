"""Probes: attack checkpoints, draw images, score them, summarise the scores."""
