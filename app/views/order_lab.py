import streamlit as st

st.title("Order lab")
