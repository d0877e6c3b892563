"""Runs that prune copies of the whole model: what is asked for, the run itself, and what comes out of it."""
