import time

import pytest

from rlkd.programs import last_program

CODE = "def f(n):\n    return 2 * n\nprint(f(int(input())))\n"


def fenced(language, code=CODE, fence="```"):
    return f"{fence}{language}\n{code}{fence}"


@pytest.mark.parametrize(
    "language",
    [
        "python", "py", "Python", "PYTHON", "python3", "Python 3", "py3", "python3.11", " python", "python ",
        "python \r",
        'python title="a.py"', "python linenums", "python:main.py", "python,numbers", "{python}",
        "{.python .numberLines}", "ipython", "IPython3", "pypy3", "PyPy 3", "",
    ],
)  # fmt: skip
@pytest.mark.parametrize("fence", ["```", "````", "~~~"])
def test_a_fence_names_python_in_any_of_its_spellings(language, fence):
    assert last_program(f"Here it is:\n{fenced(language, fence=fence)}\nIt doubles.") == CODE


@pytest.mark.parametrize(
    "language",
    ["c++", "cpp", "c", "bash", "javascript", "json", "text", "pycon", "python-repl", "pytb", "pyret",
        "pythonic", "plpython", "ipythonic", "mypy"],
)  # fmt: skip
def test_another_language_is_no_program(language):
    other = fenced(language, "other\n")
    assert last_program(other) is None
    assert last_program(f"{fenced('python')}\n{other}") == CODE
    assert last_program(f"{other}\n{fenced('')}") == CODE


@pytest.mark.parametrize(
    ("text", "program"),
    [
        # The last block counts, and one that names Python before one that names nothing.
        (f"{fenced('python', 'a')}\ntext\n{fenced('py', 'b')}", "b\n"),
        ("```python\na\n```\n```\nb\n```", "a\n"),
        ("```\na\n```\n```\nb\n```", "b\n"),
        # A block without code is passed over.
        ("```python\na\n```\n```python\n```", "a\n"),
        ("```python\na\n```\nRun it:\n```python\n# python a.py\n\n  # done\n```", "a\n"),
        ("```\na\n```\n```python\n\n```", "a\n"),
        ("```python\n# nothing\n```", None),
        ("```python\na\n```\n```python\npass\n```", "a\n"),
        ("```python\na\n```\n```py\n...  # the code from above\n```", "a\n"),
        ("```python\na\n```\n```python\n'''Run it with\n\n  python a.py'''\n```", "a\n"),
        ('```python\na\n```\n```python\n"Say \\"a\\"."; pass\n\n# Done\n```', "a\n"),
        ("```python\npass\n```", "pass\n"),
        ("```\na\n```\n```python\npass\n```", "a\n"),
        ("```python\na\n```\n```python\npassed\n```", "passed\n"),
        ("```python\na\n```\n```python\n'b'.join(c)\n```", "'b'.join(c)\n"),
        ("```python\na\n```\n```python\nf'{b()}'\n```", "f'{b()}'\n"),
        ("```python\na\n```\n```python\n'''b\n```", "'''b\n"),
        # Tags, words and marks of lists may stand before a fence, tags behind it.
        ("<answer>```python\na\n```</answer>", "a\n"),
        ("<answer>\n```python\na\n```\n</answer>", "a\n"),
        ("```python\na\n```<|im_end|>", "a\n"),
        ("The code: ```python\na\n```", "a\n"),
        ("1. ```python\n   a\n   if b:\n       c\n   ```", "a\nif b:\n    c\n"),
        ("- ```python\na\nif b:\n  c\n```", "a\nif b:\n  c\n"),
        # Indented as a whole
        ("  ```python\n  a\n  ```", "a\n"),
        ("   ```\n   a\n\n     b\n   ```", "a\n\n  b\n"),
        ("\t```python\n\ta\n\t\tb\n\t```", "a\n\tb\n"),
        ("      ```python\n      a\n      ```", "a\n"),
        ("```python\n    a\n    if b:\n        c\n```", "a\nif b:\n    c\n"),
        ("```\n\n\ta\n\n\tb\n```", "\na\n\nb\n"),
        ("1. ```python\n       a\n\n       b\n   ```", "a\n\nb\n"),
        ("```python\n    a\nb\n```", "    a\nb\n"),
        ("```python\na\n    b\n```", "a\n    b\n"),
        # In a quotation
        ("> ```python\n> a\n> if b:\n>     c\n> ```", "a\nif b:\n    c\n"),
        (">```py\n>a\n>\n>b\n>```\nIt works.", "a\n\nb\n"),
        ("> Quoted:\n>\n> ```\n> a\n> ```\n\n```bash\nb\n```", "a\n"),
        ("> > ```python\n> > a\n> > ```", "a\n"),
        ("> - ```python\n>   a\n>   ```", "a\n"),
        ("> ```python\n> a > b\n```", "a > b\n"),
        ("```python\na\n> b\n```", "a\n> b\n"),
        # A fence closes on a line of its own.
        ("```python\ns = '''```'''\na\n```", "s = '''```'''\na\n"),
        ("```python\ns = '```'\n# ``` here\na\n```", "s = '```'\n# ``` here\na\n"),
        ('```python\ndef f():\n    """\n    ```\n    f()\n    ```\n    """\n```',
         'def f():\n    """\n    ```\n    f()\n    ```\n    """\n'),
        ("````python\na\n```\nb\n````", "a\n```\nb\n"),
        # Not in a text of three quotes
        ("```python\n'''\n```\n'''\na\n```", "'''\n```\n'''\na\n"),
        ('```py\n"""Doubles.\n\n```python\nf(2)\n```\n"""\na\n```',
         '"""Doubles.\n\n```python\nf(2)\n```\n"""\na\n'),
        ('```\ns = """\n```\n""" # a"\na\n```\n```\nb\n```', "b\n"),
        ("```python\ns = \"a'''\"  # '''\n```\n'''\n```", "s = \"a'''\"  # '''\n"),
        ("```python\ns = \"\\\"\" '\\'' ''\n```\n```text\n6\n```", "s = \"\\\"\" '\\'' ''\n"),
        # One that does not end
        ('```python\n"""\na\n```\nText.\n```python\nb\n```', "b\n"),
        ('```python\n"""\na\n```\nText.\n```python\n"""B."""\nb\n```', '"""B."""\nb\n'),
        ("```\n'''\na\n```\n```\nb\n```", "b\n"),
        ("```\nIt's '''\n```\n```python\nb\n```\n```\nc\n```", "b\n"),
        ("~~~python\na\n```\n~~~", "a\n```\n"),
        ("```python\na\n``` \n", "a\n"),
        # Not closed
        ("```python\na\n", "a\n"),
        ("```python\na", "a"),
        ("```python\na\n<|im_end|>", "a\n"),
        ("```python\nprint(1)```", "print(1)\n"),
        ("```python\nprint(1)```\nIt prints 1.", "print(1)\n"),
        ("```python\na\n```This prints a.", "a\n"),
        ("```python\na\n``` And so on.\nb", "a\n"),
        ("**```python\na\n```**", "a\n"),
        ("```python\na\n```python\nb\n```", "b\n"),
        ("```json\n{}\n```python\nb\n```", "b\n"),
        # No block
        ("print(2)", None),
        ("", None),
        ("Use `print` or ```print(2)``` here.", None),
        ("Some ``` in a sentence\nprint(2)\n", None),
        ("```python print(2)```", None),
        # Not in a thought
        ("<think>```python\na\n```</think>", None),
        ("<think>```python\na\n```", None),
        ("<think>```python\na\n```</think>```python\nb\n```", "b\n"),
        # Only a line feed ends a line.
        ("```python\ns = '\u2028\x0c'\n```", "s = '\u2028\x0c'\n"),
    ],
)  # fmt: skip
def test_the_program_is_the_last_block_of_code(text, program):
    assert last_program(text) == program


def test_a_completion_that_a_template_begins_with_a_thought_has_no_program_before_its_end():
    assert last_program("So:\n```python\na\n```", prefilled=True) is None
    assert last_program("So.</think>\n```python\na\n```", prefilled=True) == "a\n"


@pytest.mark.parametrize(
    "piece",
    ["```", "```\n", "```python\n", "~~~\n", "` ", "<", "<a>", "1. ", " ", "\n", "```<", "{.", "> ", ">", "pass ",
        "# pass\n", "''' ", "```\n'''\n", "\\'''\n```\n", "\\", "    a\n"],
)  # fmt: skip
def test_no_text_takes_long(piece):
    before = time.process_time()
    for start in ("", "```python\n", "<think>", "```"):
        last_program(start + piece * (200_000 // len(piece)))
    assert time.process_time() - before < 20
