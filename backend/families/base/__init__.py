"""What a family of models is made of: the `Family` value and its parts."""
