"""Files to ship a pruned model: packed folders, and GGUF files for other programs."""
