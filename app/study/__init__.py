"""A study: one model, one calibration text, every layer measured. How it is set up, run, kept on disk and checked."""
