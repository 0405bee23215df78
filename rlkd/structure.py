r"""Structures of reasoning traces, and their text form: defines, renders and parses them.

A **step** has the fields `meta` (the sub-question: why this, now), `question` (the calculation) and `answer` (the
result). Any of them may be missing, not all. A **structure** is the ordered list of the steps of one trace. A
**branch** is one of several structures of the same problem, one for each correct trace of the teacher.

A step as text, fields that are None left out:

    <step>
    <meta>How many clips did Natalia sell in May?</meta>
    <question>48/2</question>
    <answer>24</answer>
    </step>

Tags and not JSON, because mathematical text is full of backslashes, which models get wrong inside JSON strings, and
because a small student writes tags reliably. `parse` also reads the JSON of guided decoding (`JSON_SCHEMA`):

    >>> steps = [Step("How many in May?", "48/2", "24")]
    >>> parse("Sure!\n" + render(Structure(steps)) + "\n<step>\n<meta>How ma").structure == Structure(steps)
    True
    >>> print(parse(r'{"steps": [{"meta": "Half of it?", "question": "\frac{48}{2}", "answer": 24}]}').structure)
    <step>
    <meta>Half of it?</meta>
    <question>\frac{48}{2}</question>
    <answer>24</answer>
    </step>
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from numbers import Number
from typing import Any

from rlkd.steps import split_calculation

FIELDS = ("meta", "question", "answer")

# The schema of guided decoding.
JSON_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "steps": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "properties": {field: {"type": "string"} for field in FIELDS},
                "required": list(FIELDS),
                "additionalProperties": False,
            },
        }
    },
    "required": ["steps"],
    "additionalProperties": False,
}


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a trace; a field is text without surrounding whitespace, or None.

    Empty text becomes None and a number (JSON, Arrow) becomes text. Raises TypeError for a field of any other type and
    ValueError if no field is left.
    """

    meta: str | None = None
    question: str | None = None
    answer: str | None = None

    def __post_init__(self) -> None:
        for field in FIELDS:
            object.__setattr__(self, field, _field_text(field, getattr(self, field)))
        if self.meta is None and self.question is None and self.answer is None:
            raise ValueError("a step needs at least one of meta, question and answer; all three are empty")

    @property
    def purpose(self) -> str:
        """The text that says what the step is for: meta, or for a step without it question or answer."""
        return self.meta or self.question or self.answer or ""

    def __str__(self) -> str:
        lines = [
            f"<{field}>{_escape(text)}</{field}>" for field in FIELDS if (text := getattr(self, field)) is not None
        ]
        return "\n".join(("<step>", *lines, "</step>"))


@dataclass(frozen=True, slots=True)
class Structure:
    """The steps of one trace, in order, possibly none; made from any iterable of steps. `str()` is `render()`.

    Raises TypeError if an element is not a Step; `from_list` is the way in for dicts.
    """

    steps: tuple[Step, ...] = ()

    def __init__(self, steps: Iterable[Step] = ()) -> None:
        steps = tuple(steps)
        for index, step in enumerate(steps):
            if not isinstance(step, Step):
                raise TypeError(f"step {index}: expected a Step, got {step!r}; Structure.from_list takes dicts")
        object.__setattr__(self, "steps", steps)

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[Step]:
        return iter(self.steps)

    def __getitem__(self, index: int) -> Step:
        return self.steps[index]

    def __str__(self) -> str:
        return render(self)

    def to_list(self) -> list[dict[str, str | None]]:
        """The steps as dicts with all three keys, None included: the form in datasets and JSON files."""
        return [{field: getattr(step, field) for field in FIELDS} for step in self.steps]

    @classmethod
    def from_list(cls, items: Iterable[Mapping[str, Any] | Step]) -> "Structure":
        """The inverse of `to_list`; a missing key is the same as None, and Steps are taken as they are.

        Raises TypeError or ValueError that names the index of the step, the key and the value.
        """
        if isinstance(items, str | Mapping) or not isinstance(items, Iterable):
            raise TypeError(f"a structure is read from a list of steps, got {_shown(items)}")
        steps = []
        for index, item in enumerate(items):
            if isinstance(item, Step):
                steps.append(item)
                continue
            if not isinstance(item, Mapping):
                raise TypeError(f"step {index}: expected a dict with the keys {', '.join(FIELDS)}, got {_shown(item)}")
            for key, value in item.items():
                if key not in FIELDS:
                    raise ValueError(
                        f"step {index}: unknown key {key!r} with the value {_shown(value)}; known: {', '.join(FIELDS)}"
                    )
            try:
                steps.append(Step(**item))
            except (TypeError, ValueError) as error:
                raise type(error)(f"step {index}: {error}") from None
        return cls(steps)


@dataclass(frozen=True, slots=True)
class DroppedText:
    """A part of a reply that `parse` could not use: the beginning of its text (200 characters), and the reason."""

    text: str
    reason: str


@dataclass(frozen=True, slots=True)
class Parsed:
    """The steps of a reply, and the parts that were dropped, in the order of the text."""

    structure: Structure
    dropped: tuple[DroppedText, ...] = ()


def render(structure: Structure) -> str:
    """The structure as text, one step after another; empty for no steps. `parse` gives back an equal structure."""
    return "\n".join(map(str, structure.steps))


def parse(text: str) -> Parsed:
    """Read the steps in a model's reply; never raises on a str, and takes time linear in its length.

    Tags, tolerantly: prose and code fences around the steps, tags in any case and with whitespace inside, fields in
    any order and a missing `</step>` before the next `<step>` are accepted. Dropped and reported: a step that ends
    with a field still open, the unfinished step at the end (even if some of its fields are complete), an empty step,
    the second of two equal fields, words between the fields.

    Without any `<step>` the reply is searched for flat JSON objects with at least one of the keys meta, question and
    answer, in whatever surrounds them: `{"steps": [...]}`, a bare list, lines. A backslash that begins a LaTeX command
    is kept as one (formally `"\\frac"` is a form feed and `rac`); `\\n` and `\\u00e9` are read as JSON.

    A truncated reply gives a prefix of the steps of the whole reply, except one with JSON steps before its first
    `<step>` that is truncated between the two.
    """
    has_tags = any(tag[2].lower() == "step" and not tag[1] for tag in _TAG.finditer(text))
    steps, dropped = _TagReader().read(text) if has_tags else _read_json(text)
    return Parsed(Structure(steps), tuple(dropped))


def from_gsm8k_socratic(answer: str) -> Structure:
    """The structure of a GSM8K answer in its socratic form, lines of `sub-question ** sentence`.

    meta is the sub-question; question and answer come from the sentence by `split_calculation` (the last calculator
    mark where there are several). A sentence without a calculation (`Let x be the price.`) is the question and has no
    answer, and a line without ` ** ` has no meta. The last line, `#### 72`, is no step.
    """
    steps = []
    for line in answer.splitlines():
        if not line.strip() or line.lstrip().startswith("####"):
            continue
        meta, separator, sentence = line.partition(" ** ")
        if not separator:
            meta, sentence = "", line
        steps.append(Step(meta, *split_calculation(sentence)))
    return Structure(steps)


def from_step_keyed(obj: Mapping[str, Any] | str) -> Structure:
    """The structure of a D-RPC rationale (arXiv 2605.07139): a JSON object of step name -> text, in order.

    Takes the object or its JSON text, by itself or under the key `rationale`; the released data hold that value as an
    escaped string, which is read too. meta is the name split into words (`FindUnitPrice`: `Find Unit Price`); question
    and answer come from the text by `split_calculation`. Raises ValueError for text that is no JSON object and
    TypeError for a step that is not text, naming it.
    """
    keyed = _json_object(obj) if isinstance(obj, str) else obj
    if "rationale" in keyed:
        rationale = keyed["rationale"]
        keyed = _json_object(rationale) if isinstance(rationale, str) else rationale
    if not isinstance(keyed, Mapping):
        raise TypeError(f"a step-keyed rationale is an object of step name -> text, got {_shown(keyed)}")
    steps = []
    for name, text in keyed.items():
        words = _WORD_BOUNDARY.sub(" ", name.replace("_", " "))
        try:
            steps.append(Step(words, *split_calculation(_field_text("text", text) or "")))
        except (TypeError, ValueError) as error:
            raise type(error)(f"step {name!r}: {error}") from None
    return Structure(steps)


_WORD_BOUNDARY = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


def _json_object(text: str) -> Mapping[str, Any]:
    try:
        value = _lenient_json(text)
        if not isinstance(value, Mapping):
            raise ValueError(f"found {_shown(value)}")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"a step-keyed rationale is a JSON object; {_excerpt(text)!r} is not: {error}") from None
    return value


def _field_text(field: str, value: object) -> str | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | Number):
        raise TypeError(f"{field} must be text, a number or None, got {_shown(value)}")
    return str(value).strip() or None


def _shown(value: object) -> str:
    return f"{repr(value)[:200]} ({type(value).__name__})"


def _excerpt(text: str) -> str:
    return text[:400].strip()[:200]


# Tags. The escape uses the reader's own pattern, so that exactly what would be read as a tag is escaped.

_TAG = re.compile(r"<\s*+(/?+)\s*+(step|meta|question|answer)\s*+>", re.IGNORECASE | re.ASCII)
_ESCAPED = re.compile(rf"&(?=amp;|lt;)|<(?={_TAG.pattern[1:]})", re.IGNORECASE | re.ASCII)
_ENTITY = re.compile(r"&(amp|lt);")


def _escape(text: str) -> str:
    return _ESCAPED.sub(lambda found: "&amp;" if found[0] == "&" else "&lt;", text)


def _unescape(text: str) -> str:
    return _ENTITY.sub(lambda entity: "&" if entity[1] == "amp" else "<", text)


class _TagReader:
    """One pass over the tags; a step is decided when its `</step>` or the next `<step>` is read, and never again."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.dropped: list[DroppedText] = []
        self.start: int | None = None  # where the step that is being read began
        self.fields: dict[str, str] = {}
        self.open_field: str | None = None
        self.fault: str | None = None

    def read(self, text: str) -> tuple[list[Step], list[DroppedText]]:
        since = 0  # where the previous tag ended
        last_step_end = 0
        for tag in _TAG.finditer(text):
            closing, name = bool(tag[1]), tag[2].lower()
            between, since = text[since : tag.start()], tag.end()
            if name == "step":
                if self.start is not None:
                    self._finish(between, text[self.start : tag.start()])
                elif closing:
                    self._drop(text[last_step_end : tag.end()], "a </step> without its <step>")
                self.start = None if closing else tag.start()
                self.fields, self.open_field, self.fault = {}, None, None
                last_step_end = tag.end()
            elif self.start is None or self.fault:
                continue
            elif self.open_field is None:
                self._report_words(between)
                if not closing:
                    self.open_field = name
            elif closing and name == self.open_field:
                self._fill(name, between)
            else:
                self.fault = f"<{self.open_field}> is not closed before {_excerpt(tag[0])}"
        if self.start is not None:
            self._drop(text[self.start :], "unfinished: the text ends before </step>")
        return self.steps, self.dropped

    def _fill(self, name: str, content: str) -> None:
        self.open_field = None
        content = _unescape(content).strip()
        if content and name in self.fields:
            self._drop(content, f"a second <{name}> in one step; the first one counts")
        elif content:
            self.fields[name] = content

    def _finish(self, rest: str, whole: str) -> None:
        if self.fault is None and self.open_field is not None:
            self.fault = f"<{self.open_field}> is not closed before the step ends"
        if self.fault is not None:
            self._drop(whole, self.fault)
            return
        self._report_words(rest)
        if self.fields:
            self.steps.append(Step(**self.fields))
        else:
            self._drop(whole, "an empty step")

    def _report_words(self, between: str) -> None:
        if any(map(str.isalnum, between)):
            self._drop(between, "text outside the fields of a step")

    def _drop(self, text: str, reason: str) -> None:
        self.dropped.append(DroppedText(_excerpt(text), reason))


# JSON. An object counts if it is flat. Linear time, although every `{"` is tried: a brace inside a string of one
# attempt can only begin an attempt that sees strings and gaps exchanged, so that no character is read by more than two
# attempts. A string may hold a raw newline, but not before a quote or a bracket: so a lost closing quote spoils one
# line and not the rest.

_CHARACTERS = r'(?>(?:[^"\\\n]|\\.|\n\s*+(?!["{}\[\]]))*)'
_OBJECT_START = re.compile(r'\{\s*+"')
_OBJECT_BODY = re.compile(rf'\{{(?>(?:[^{{}}\[\]"\\]|"{_CHARACTERS}")*)', re.DOTALL)
_OPEN_STRING = re.compile(rf'"{_CHARACTERS}\\?+\Z', re.DOTALL)
_OWN_START = re.compile(r'\{\s*+"\s*+(?:meta|question|answer)\s*+"', re.IGNORECASE)
_BACKSLASH = re.compile(r"\\(?:(?P<code>u[0-9a-fA-F]{4})|(?P<word>[a-zA-Z]++)|.|\Z)", re.DOTALL)

# The LaTeX commands that begin like one of JSON's escapes \b, \f, \n, \r and \t. `\ni` is not among them: in a reply
# it is a line that begins with the variable i.
_LATEX = re.compile(
    "backslash|bar|barwedge|because|begin|beta|beth|between|bf|big|bigcap|bigcup|bigg|biggl|biggr|bigl|bigoplus|bigotimes"
    "|bigr|bigvee|bigwedge|binom|blacksquare|bm|bmod|boldsymbol|bot|bowtie|box|boxed|boxplus|boxtimes|breve|bullet"
    "|fbox|flat|footnotesize|forall|frac|frown"
    "|nabla|natural|ne|nearrow|neg|neq|newline|nexists|ngeq|nleq|nmid|nonumber|not|notin|nparallel|nsubseteq|nu|nwarrow"
    "|rangle|rbrace|rbrack|rceil|rfloor|rho|right|rightarrow|rightharpoonup|rightleftharpoons|rm|root|rtimes|rvert"
    "|tag|tan|tanh|tau|tbinom|text|textbf|textit|textrm|textsf|textstyle|texttt|tfrac|therefore|theta|tilde|times|tiny"
    "|to|top|triangle|triangleleft|triangleq|triangleright|tt|twoheadrightarrow"
)


def _read_json(text: str) -> tuple[list[Step], list[DroppedText]]:
    steps: list[Step] = []
    dropped: list[DroppedText] = []
    position = 0
    while start := _OBJECT_START.search(text, position):
        end = _OBJECT_BODY.match(text, start.start()).end()  # type: ignore[union-attr]  # it matches any `{`
        position = start.start() + 1
        if text.startswith("}", end):
            if _read_object(text[start.start() : end + 1], steps, dropped):
                position = end + 1
        elif end == len(text) or _OPEN_STRING.match(text, end):
            unfinished = "unfinished: the text ends inside a JSON object"
            dropped.append(DroppedText(_excerpt(text[start.start() :]), unfinished))
            break
        elif _OWN_START.match(text, start.start()):
            broken = _excerpt(text[start.start() : end + 1])
            dropped.append(DroppedText(broken, "a JSON object that is not flat or not closed"))
    return steps, dropped


def _read_object(source: str, steps: list[Step], dropped: list[DroppedText]) -> bool:
    """Read one flat JSON object; False if it is not a step, so that its inside must still be searched."""
    try:
        # Pairs, not a dict, so that the first of two equal keys wins.
        pairs = _lenient_json(source, parse_constant=str, object_pairs_hook=list)
    except ValueError as error:
        if _OWN_START.match(source):
            dropped.append(DroppedText(_excerpt(source), f"not valid JSON: {error}"))
        return _OWN_START.match(source) is not None
    fields: dict[str, Any] = {}
    for key, value in pairs:
        name = key.strip().lower()
        if name in fields and fields[name] not in (None, ""):
            dropped.append(DroppedText(_excerpt(str(value)), f"a second {name!r} in one step; the first one counts"))
        elif name in FIELDS:
            fields[name] = value
    if not fields:
        return False
    try:
        steps.append(Step(**fields))
    except (TypeError, ValueError) as error:
        dropped.append(DroppedText(_excerpt(source), str(error)))
    return True


def repair_backslashes(source: str) -> str:
    """JSON text in which every backslash is one of JSON's escapes or escaped, LaTeX commands read as such."""
    return _BACKSLASH.sub(_repaired_escape, source)


def _lenient_json(text: str, **options: Any) -> Any:
    """The value of JSON with LaTeX and raw line breaks in its strings; numbers stay as they are written."""
    return json.loads(repair_backslashes(text), strict=False, parse_float=str, parse_int=str, **options)


def _repaired_escape(found: re.Match[str]) -> str:
    if word := found["word"]:
        valid = word[0] in "bfnrt" and not _LATEX.fullmatch(word)
    else:
        valid = found["code"] is not None or found[0] in (r"\"", r"\\", r"\/")
    return found[0] if valid else "\\" + found[0]
