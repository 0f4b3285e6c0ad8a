"""The bilevel engine: simulated fine-tuning, its implicit gradient, and the losses around it."""
