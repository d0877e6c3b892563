import streamlit as st

st.title("Prune")
