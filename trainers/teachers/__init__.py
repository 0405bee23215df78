"""The teachers whose log-probabilities a loss reads, in distillation and in RLKD alike."""
