"""Contextual prompts: the instruction, asking a language model for them, checking them."""
