"""RLKD: GRPO with a structure reward (arXiv 2505.16142)."""
