"""The `Family` value and the parts that it is made of."""
