"""Files to ship a pruned model: GGUF files for other programs."""
