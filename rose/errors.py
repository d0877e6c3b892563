"""Errors that a person can act on: one sentence that says what is wrong and what to do."""


class RoseError(ValueError):
    """Bad input, or work that cannot be done. The message is meant to be shown as it is."""


class Cancelled(Exception):
    """Raised by a progress callback to stop a run; the run cleans up and lets it pass."""
