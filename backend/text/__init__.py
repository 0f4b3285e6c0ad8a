"""Text from and to people and files: JSON read with limits, names shown without control codes."""
