"""Scorers, which flag images: one Protocol, found by name."""
