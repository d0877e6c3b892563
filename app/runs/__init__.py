"""Background runs on whole models: requests, runs and results."""
