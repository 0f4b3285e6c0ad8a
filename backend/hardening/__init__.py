"""The hardening recipe and the run around it."""
