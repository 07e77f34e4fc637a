"""Behind `benchmark` and `selfcheck`: what is measured and compared on this machine."""
