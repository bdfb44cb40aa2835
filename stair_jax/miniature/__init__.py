"""The embedded world: prompts with exact truth, teacher text, verifier and tokenizer, offline."""
