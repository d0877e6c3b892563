"""What a pruned model is taken home as: packed folders, and GGUF files for other programs."""
