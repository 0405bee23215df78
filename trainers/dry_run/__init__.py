"""Dry runs (`--dry_run` of a recipe): what a run would do, and what it would be refused for, without its weights.

`dry_run.py` collects refusals and warnings and prints; each other module is a section of the output. The checks are
those of the trainers themselves (`trainers/*/preparation.py`). Nothing is written to the output folder.
"""
