"""The demo: a tiny checkpoint with the architecture of Stable Diffusion, images and a judge."""
