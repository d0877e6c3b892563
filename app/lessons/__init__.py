"""The eleven lessons of the page Learn: what each of them says, shows and asks. Only `board` draws with Streamlit."""
