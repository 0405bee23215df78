"""Evaluation of a model on test rows: completions (`completing`, kept in a `folder`), figures, comparison, overlap."""
