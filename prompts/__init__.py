"""Contextual prompts: the instruction to a language model, the request, and the checks."""
