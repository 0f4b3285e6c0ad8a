"""Concepts, prompts and images, and their latents and text embeddings, encoded once."""
