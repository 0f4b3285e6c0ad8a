"""What a hardening run needs of its device's memory, told without the device and the weights."""
