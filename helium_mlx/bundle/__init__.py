"""A checkpoint as a folder for programs without Python, and a host of such folders in Python."""
