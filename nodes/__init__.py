"""ComfyUI nodes. None exist yet; this file keeps the folder from merging with ComfyUI's `nodes`."""
