"""GGUF files, the format of llama.cpp: settings, weights, tokenizer."""
