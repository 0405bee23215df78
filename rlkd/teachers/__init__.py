"""Teachers' top-k log-probabilities, live and cached."""
