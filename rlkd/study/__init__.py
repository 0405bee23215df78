"""Studies: does a method help? Arms x seeds of a recipe from one YAML file, their table, their figure.

| module | what it does |
| --- | --- |
| `definition` | reads and checks the file: `Study`, its arms and their stages |
| `commands` | the command of every stage of every run |
| `runner` | runs them, side by side and resumable |
| `measures` | reads what a run has written: `StudyRun` |
| `analysis` | figures with intervals: pure functions of runs |
| `table`, `figure` | Markdown, and a picture |
"""
