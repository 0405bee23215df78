"""The laboratory: a task whose right reasoning is known exactly, and students small enough to train in minutes."""
