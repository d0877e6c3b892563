"""The order lab: sweeps of one layer by many orders and budgets, and one file for each section of the page."""
