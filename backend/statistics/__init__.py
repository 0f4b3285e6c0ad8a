"""Intervals of rates, paired tests, resilience; all seeded and without torch."""
