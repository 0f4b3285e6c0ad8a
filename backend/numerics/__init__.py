"""Seeds, determinism and compatibility with versions of PyTorch."""
