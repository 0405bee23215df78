"""Checks of an installation and its machine: `rlkd doctor`. One module for each part, none of which starts a model."""
