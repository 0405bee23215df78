"""Validity-calibrated distillation (arXiv 2605.04078)."""
