"""Better rationales: written along a bank of paths, and selected for the student that will learn from them.

    records.py      what the stages hand on: questions with candidates
    prompts.py      what a teacher is asked, and how its step-keyed replies are read
    journal.py      asking a teacher once, whatever interrupts the run
    writing.py      candidates for questions
    bank.py         the path bank; embedders.py, clustering.py and routing.py serve it
    selectors/      the registry kind `selector`; limits.py, difficulty.py and similarity.py serve it
    output.py       the files of a run and its summary
    pipeline.py     the stages of `recipes/rationales.py`

Importing any of them loads neither torch nor scikit-learn. How to use them: `docs/rationales.md`.
"""
