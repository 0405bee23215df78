"""rlkd: reinforcement learning and knowledge distillation for small reasoning models, built on TRL.

The packages of the distribution, and the one direction in which they may import each other:

    recipes  ->  trainers  ->  rewards  ->  rlkd

`rlkd` holds the methods themselves, free of TRL and of any training loop.
"""

__version__ = "0.1.0"
