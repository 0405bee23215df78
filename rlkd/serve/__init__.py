"""`rlkd serve` starts, watches and ends the model servers of a run, without importing torch or vLLM."""
