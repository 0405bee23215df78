"""A pool of killable worker processes for reward functions."""
