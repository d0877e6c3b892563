"""The Streamlit app: it draws; every number comes from `rose`."""
