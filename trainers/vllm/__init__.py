"""Rollouts with vLLM: checks of rollout servers, and weight transfer to them."""
