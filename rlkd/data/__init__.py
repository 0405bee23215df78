"""Rows: their schema (`rows`), the embedded samples (`samples`), loading them (`loading`), shuffled teachers
(`shuffle`)."""
