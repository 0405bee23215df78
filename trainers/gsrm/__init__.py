"""Fine-tuning of structure models."""
