"""Better rationales: written along a bank of paths, and selected for the student that will learn from them.

    records.py      the data of the stages: questions with candidates; questions.py loads them
    write/          candidates: settings, prompts, the teacher, its journal, the writer
    bank/           the path bank: entries, intents, paths, thresholds, routing
    select/         the registry kind `selector`: the contract, a selector per file, limits
    output.py       the files of a run; summary.py its page
    pipeline.py     the stages of `recipes/rationales.py`

Importing any of them loads neither torch nor scikit-learn. How to use them: `docs/rationales.md`.
"""
