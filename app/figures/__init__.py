"""Pure functions from a rose result to a plotly figure; no streamlit here."""
