"""Teachers that give the k likeliest tokens at each position, live or from a cache.

topk.py         the contract: `TopK`, `TopKTeacher`
local.py        a model in this process
engine.py       an engine that gives the log-probabilities of a prompt's tokens, such as a vLLM server
cache.py        a folder of earlier results, with its shards.py and coding.py
traces.py       the text and the ids of a teacher's trace
vocabulary.py   whether student and teacher share a vocabulary
"""

from rlkd.teachers.traces import trace_ids, trace_text

__all__ = ["trace_ids", "trace_text"]
