"""Erases directions from the layers of a denoiser in closed form."""
