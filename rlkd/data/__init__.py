"""Rows: fields (`rows`), embedded samples (`samples`, `arithmetic`), loading, shuffled teachers (`shuffle`)."""
