"""RLKD on TRL's asynchronous trainer: rollouts continue while the student trains."""
