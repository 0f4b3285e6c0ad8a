"""Rates, intervals and paired comparisons."""
