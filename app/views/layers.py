import streamlit as st
from app import session, components
st.title("Layers")
s=components.require_study("x")
st.dataframe(s.overview(0.5))
