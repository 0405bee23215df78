"""Rollouts by vLLM: checks of servers, and the weights' way to them."""
