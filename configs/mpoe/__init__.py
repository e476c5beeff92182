"""The MPOE paper (COLING 2022): mixtures of experts that share a central core, in T5 and GPT-2."""
