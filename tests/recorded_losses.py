"""Losses of real runs, for tests of what is said of them."""

# Recorded: harm of a test run of 20 steps that moved nothing (retain loss 1e-6)
IDLE = (
    -0.03, -0.255, -0.078, -0.011, -0.077, -0.225, -0.079, -0.113, -0.177, -0.064,
    -0.271, -0.042, -0.023, -0.259, -0.024, -0.15, -0.182, -0.23, -0.032, -0.04,
)  # fmt: skip
