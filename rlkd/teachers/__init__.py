"""Teachers that give the k likeliest tokens at each position, live or from a cache (`docs/teacher_cache.md`)."""

from rlkd.teachers.traces import trace_ids, trace_text

__all__ = ["trace_ids", "trace_text"]
