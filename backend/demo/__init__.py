"""The demo: a tiny checkpoint of Stable Diffusion's shape, its images, its judge."""
