"""One weight matrix: tensors in, tensors out. No files, no models, no UI, no printing."""
