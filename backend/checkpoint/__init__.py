"""Recognises checkpoint files, reads them strictly and writes them atomically."""
