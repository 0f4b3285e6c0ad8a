"""A run on disk: folder, lock, records."""
