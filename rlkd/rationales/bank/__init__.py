"""The path bank of D-RPC (arXiv 2605.07139)."""
