"""Base models: which there are, where their files come from, their shapes, weights and tokenizers. Imports no torch."""
