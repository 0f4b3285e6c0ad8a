"""Prediction of the device memory that a hardening run needs, without device and weights."""
