"""Records on screen: names, comparison, ranking, what to take home."""
