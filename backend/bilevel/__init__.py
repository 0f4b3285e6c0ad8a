"""Bilevel optimisation: losses, simulated fine-tuning, and the gradient through it."""
