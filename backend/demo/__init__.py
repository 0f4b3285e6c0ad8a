"""The demo: a tiny checkpoint of Stable Diffusion's shape, its world of drawings, its judge."""
