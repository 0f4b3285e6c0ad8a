"""Parts that the families with Stable Diffusion's U-Net share."""
