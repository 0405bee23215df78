"""Data files of the embedded sample; read them through `rlkd.data.rows`."""
