"""Tools that test a user's reward: the contract, a run on real rows, a template."""
