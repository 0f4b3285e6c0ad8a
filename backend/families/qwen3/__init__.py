"""The text encoder Qwen3 and its tokenizer, which several families share."""
