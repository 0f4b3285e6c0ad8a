"""Writing a hardened checkpoint by rewriting its source."""
