import streamlit as st

from app import session

st.title("Start")
if st.button("Run"):
    session.choose_setup(session.setup())
    session.start()
    st.rerun()
