"""What is asked: settings as widgets, and what a run would cost."""
