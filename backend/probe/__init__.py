"""The measurement: fine-tune for real, generate, score."""
