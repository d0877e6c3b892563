import streamlit as st

st.title("Layer")
