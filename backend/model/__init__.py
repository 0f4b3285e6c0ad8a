"""The pieces of a text-to-image model, free of any file format."""
