"""What the trainers share: arguments, run files, checkpoints, evaluation, and the module for TRL's private surface."""
