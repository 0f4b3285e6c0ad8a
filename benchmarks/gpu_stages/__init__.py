"""The stages of `gpu.py`: each has `run(device, small, out, tell)`."""
