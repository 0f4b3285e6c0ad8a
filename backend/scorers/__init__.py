"""What flags an image: scorers behind one Protocol, found by name."""
