"""What the page Diffusion computes and keeps."""
