"""The tab of A1111 and Forge, and of `resalign ui`. Relative imports only; loads no torch."""
