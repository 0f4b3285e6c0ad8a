"""CLIP text encoders, which several families read: configs, tensor names, tokenizer, networks."""
