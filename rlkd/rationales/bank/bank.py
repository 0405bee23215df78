"""The path bank of D-RPC (arXiv 2605.07139): category -> canonical intent -> distinct paths, and its growth.

A bank keeps a *record* of every route that led to a right answer: category, intent as the teacher worded it, path, and
the questions. Everything else is derived from the routes of the record that have *entered*, at every flush: the
canonical intents, the distinct paths, and which of them fit under the size cap. `docs/path_bank.md` shows its use, and
lists what follows the released code and what is ours.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from rlkd.embedders import KnownVectors
from rlkd.errors import UsageError
from rlkd.files import atomic_file
from rlkd.rationales.bank.entries import RouteEntry, one_line, path_violations, violations
from rlkd.rationales.bank.intents import canonical_intents
from rlkd.rationales.bank.paths import StepNames, distinct_paths, entropy_bits
from rlkd.rationales.bank.thresholds import Thresholds, known_thresholds, thresholds_for

if TYPE_CHECKING:
    from rlkd.embedders import Embedder

FORMAT = "rlkd path bank"
VERSION = 1

Duplicates = Literal["tokens", "embedder"]


class BankError(UsageError):
    """A bank, its file or its embedder does not fit; the message names the field, its value and the way out."""


@dataclass(frozen=True)
class BankRules:
    """The rules that derive a bank from its record. Banks with different rules cannot be merged.

    Args:
        embedder: identity of the embedder (`Embedder.name`).
        thresholds: similarities that count as near for it.
        faithful: D-RPC's code as released: without cap and support, and with intents as worded.
        cap: maximum number of paths in the bank, by use (ours; D-RPC tried 50, 75 and 125). None: no cap.
        flush_at: number of due routes that starts a flush (D-RPC).
        support: distinct questions that a path must have solved before it enters (ours; 1 in the released code).
        duplicates: similarity of two paths by their words (`tokens`) or by the embedder.
    """

    embedder: str
    thresholds: Thresholds = field(default_factory=Thresholds)
    faithful: bool = False
    cap: int | None = 75
    flush_at: int = 100
    support: int = 2
    duplicates: Duplicates = "tokens"

    def __post_init__(self) -> None:
        if (self.cap is not None and self.cap < 1) or self.flush_at < 1 or self.support < 1:
            raise BankError(
                f"cap={self.cap}, flush_at={self.flush_at}, support={self.support}: expected at least 1 each, or "
                "cap=None for no bound"
            )
        if self.duplicates not in get_args(Duplicates):
            raise BankError(f"duplicates={self.duplicates!r}: expected one of {', '.join(get_args(Duplicates))}")
        if self.faithful and (self.cap is not None or self.support != 1):
            raise BankError(
                f"faithful=True with cap={self.cap}, support={self.support}: the released code has neither a cap nor "
                "a second success; set cap=None and support=1, or faithful=False"
            )


_FAITHFUL = {"cap": None, "support": 1}

# Category, intent and path; the intent as worded in the record, canonical in the bank.
_Key = tuple[str, str, StepNames]


@dataclass
class _Successes:
    """The successes of a route: the questions it solved, its rank in the order, the generation of its last use."""

    questions: set[str]
    first: int
    last: int
    entered: bool

    def merged(self, other: _Successes) -> _Successes:
        first, last = min(self.first, other.first), max(self.last, other.last)
        return _Successes(self.questions | other.questions, first, last, self.entered or other.entered)


@dataclass(frozen=True)
class BankPath:
    """A path of the bank: its step names, the number of questions it solved, the generation of its last use."""

    names: StepNames
    uses: int
    last: int


class PathBank:
    """Category -> canonical intent -> distinct paths (see the top of this module)."""

    def __init__(self, rules: BankRules) -> None:
        self.rules = rules
        self.generation = 0
        """The number of flushes: a `Router` of an earlier generation is out of date."""
        self._record: dict[_Key, _Successes] = {}
        # Derived: canonical intents, the kept path of each path, and the successes of the kept paths by intent.
        self._canonical: dict[tuple[str, str], str] = {}
        self._represented_by: dict[_Key, StepNames] = {}
        self._bank: dict[tuple[str, str], dict[StepNames, _Successes]] = {}
        # Caches, so that a flush costs what is new: the vectors of intents, and two clusterings per category.
        self._vectors = KnownVectors()
        self._clusterings: dict[str, dict[tuple[str, ...], dict[str, str]]] = {}

    # Contents.

    def __len__(self) -> int:
        """The number of paths."""
        return sum(map(len, self._bank.values()))

    def intents(self) -> list[tuple[str, str]]:
        """All pairs of category and canonical intent, in alphabetical order."""
        return sorted(self._bank)

    def paths(self, category: str, intent: str) -> tuple[BankPath, ...]:
        """The distinct paths of a canonical intent, most used first; empty for an unknown intent."""
        paths = self._bank.get((category, intent), {})
        listed = [BankPath(names, len(each.questions), each.last) for names, each in paths.items()]
        return tuple(sorted(listed, key=lambda path: (-path.uses, path.names)))

    def holds(self, category: str, intent: str, path: Sequence[str]) -> bool:
        """Whether the bank holds a path, or a near-duplicate that represents it, under this intent."""
        return self._kept(self._normalised(category, intent, path)) is not None

    @property
    def pending(self) -> int:
        """The number of routes that led to right answers and have not entered."""
        return sum(not each.entered for each in self._record.values())

    @property
    def due(self) -> int:
        """The number of pending routes with a success since the last flush; `flush` waits for `rules.flush_at`."""
        return sum(not each.entered and each.last == self.generation for each in self._record.values())

    def entropy(self) -> float:
        """The entropy of the uses of the bank's paths, in bits; 0 for an empty bank."""
        return entropy_bits(len(each.questions) for paths in self._bank.values() for each in paths.values())

    def summary(self) -> dict[str, Any]:
        """The figures of the bank, as JSON."""
        return {
            "categories": len({category for category, _ in self._bank}),
            "intents": len(self._bank),
            "paths": len(self),
            "uses": sum(len(each.questions) for paths in self._bank.values() for each in paths.values()),
            "entropy_bits": round(self.entropy(), 4),
            "pending": self.pending,
            "routes_recorded": len(self._record),
            "generation": self.generation,
            "embedder": self.rules.embedder,
            "thresholds": asdict(self.rules.thresholds),
            "cap": self.rules.cap,
            "faithful": self.rules.faithful,
        }

    def __str__(self) -> str:
        """The bank for a reader: one line per intent, and one per path with its uses."""
        lines = [f"{len(self)} paths, {len(self._bank)} intents, {self.pending} pending, {self.entropy():.2f} bits"]
        for category, intent in self.intents():
            lines.append(f"{category} / {intent}")
            lines += [f"  {path.uses:>5}  {' > '.join(path.names)}" for path in self.paths(category, intent)]
        return "\n".join(lines)

    # Growth.

    @classmethod
    def from_seed(
        cls,
        entries: Iterable[RouteEntry],
        embedder: Embedder,
        *,
        thresholds: Thresholds | None = None,
        faithful: bool = False,
        **settings: Any,
    ) -> PathBank:
        """The first bank, from a seed round: the paths of the right answers, each under its first intent.

        They enter at once, whatever `support` is. Entries that break the contract (`violations`) are left out too,
        unless `faithful`. `thresholds` None: the known ones of the embedder, else calibrated on these entries.
        `settings` are further fields of `BankRules`.
        """
        right = [entry for entry in entries if entry.correct and (faithful or not violations(entry))]
        thresholds = thresholds or thresholds_for(embedder, right)
        bank = cls(BankRules(embedder.name, thresholds, faithful, **((_FAITHFUL if faithful else {}) | settings)))
        for entry in right:
            bank.record_success(entry.category, entry.intents[0], entry.path, entry.question_id)
        for successes in bank._record.values():
            successes.entered = True
        bank.recluster(embedder)
        return bank

    def record_success(self, category: str, intent: str, path: Sequence[str], question_id: str) -> None:
        """Count a right answer along a path: a use if the bank holds the path, else the route is pending.

        For right answers only; a question counts once for a path. Raises `BankError` for an empty path, category,
        intent or name.
        """
        route = self._normalised(category, intent, path)
        if not all((*route[:2], *route[2], route[2])):
            raise BankError(
                f"question {question_id!r}: a route with an empty part, {route}; expected none to be empty"
            )
        question = one_line(question_id)
        rank = len(self._record) if self.rules.faithful else 0
        successes = self._record.setdefault(route, _Successes(set(), rank, self.generation, False))
        successes.questions.add(question)
        successes.last = self.generation
        if (kept := self._kept(route)) is not None:
            successes.entered = True
            kept.questions.add(question)
            kept.last = self.generation

    def record(self, entry: RouteEntry) -> bool:
        """Count an entry if its answer is right; returns whether it was counted.

        A path that is not fit for a bank (`path_violations`) is not counted either, unless `faithful`.
        """
        fit = self.rules.faithful or not path_violations(entry.path, entry.question)
        if not (entry.correct and entry.intents and fit):
            return False
        self.record_success(entry.category, entry.intents[0], entry.path, entry.question_id)
        return True

    def flush(self, embedder: Embedder, *, force: bool = False) -> bool:
        """Take pending routes in and recluster, if `rules.flush_at` of them are due; returns whether it did.

        Those enter whose path solved `rules.support` distinct questions under intents that cluster together. `force`
        does it if any route is pending.
        """
        self.check(embedder)
        if self.due < self.rules.flush_at and not (force and self.pending):
            return False
        canonical = self._clustered(self._record, embedder)
        questions: dict[_Key, set[str]] = defaultdict(set)
        for (category, intent, path), successes in self._record.items():
            questions[category, canonical[category, intent], path] |= successes.questions
        for (category, intent, path), successes in self._record.items():
            supported = len(questions[category, canonical[category, intent], path]) >= self.rules.support
            successes.entered = successes.entered or supported
        self.generation += 1
        self.recluster(embedder)
        return True

    def recluster(self, embedder: Embedder) -> None:
        """Derive canonical intents and distinct paths again from the routes that have entered, and evict.

        Of near-duplicates the one with more uses is kept (faithful: the first). Beyond `rules.cap` the paths with the
        fewest uses go, among these the ones last used in the earliest generation, then by the alphabet. Raises
        `BankError` for another embedder.
        """
        self.check(embedder)
        entered = {route: successes for route, successes in self._record.items() if successes.entered}
        self._canonical = self._clustered(entered, embedder)
        by_intent: dict[tuple[str, str], dict[StepNames, _Successes]] = defaultdict(dict)
        for (category, intent, path), successes in entered.items():
            paths = by_intent[category, self._canonical[category, intent]]
            paths[path] = paths[path].merged(successes) if path in paths else successes
        judge, faithful = embedder if self.rules.duplicates == "embedder" else None, self.rules.faithful
        represented_by: dict[_Key, StepNames] = {}
        for (category, intent), paths in by_intent.items():
            # Ours: most used first, so that the order in which they came makes no difference.
            first = {path: each.first if faithful else -len(each.questions) for path, each in paths.items()}
            ordered = sorted(paths, key=lambda path: (first[path], path))
            for path, kept in distinct_paths(ordered, self.rules.thresholds.duplicate, judge).items():
                represented_by[category, intent, path] = kept
        self._fill(represented_by)
        uses = {(*pair, path): each for pair, paths in self._bank.items() for path, each in paths.items()}
        ranked = sorted(uses, key=lambda key: (-len(uses[key].questions), -uses[key].last, key))
        staying = set(ranked[: self.rules.cap])
        self._fill({key: kept for key, kept in represented_by.items() if (*key[:2], kept) in staying})

    def _clustered(self, routes: Iterable[_Key], embedder: Embedder) -> dict[tuple[str, str], str]:
        """The canonical intents of some routes; the last two clusterings of a category (all, entered) are cached."""
        by_category: dict[str, set[str]] = defaultdict(set)
        for category, intent, _ in routes:
            by_category[category].add(intent)
        canonical: dict[tuple[str, str], str] = {}
        for category, intents in sorted(by_category.items()):
            cached, key = self._clusterings.setdefault(category, {}), tuple(sorted(intents))
            names = cached.pop(key, None)
            if names is None:
                names = canonical_intents(key, embedder, self.rules.thresholds.eps, self._vectors)
            cached[key] = names
            if len(cached) > 2:
                del cached[next(iter(cached))]
            canonical |= {(category, intent): name for intent, name in names.items()}
        return canonical

    def _fill(self, represented_by: Mapping[_Key, StepNames]) -> None:
        """Derive the bank from the record, the canonical intents and `represented_by`."""
        self._represented_by = dict(sorted(represented_by.items()))
        self._bank = {}
        for (category, intent, path), kept in self._represented_by.items():
            if path == kept:
                self._bank.setdefault((category, intent), {})[path] = _Successes(set(), 0, 0, True)
        for route, successes in self._record.items():
            kept_path = self._kept(route) if successes.entered else None
            if kept_path is not None:
                kept_path.questions |= successes.questions
                kept_path.last = max(kept_path.last, successes.last)

    def _kept(self, route: _Key) -> _Successes | None:
        """The successes of the kept path that represents a route; None if the bank does not hold it."""
        category, intent, path = route
        # A canonical name that is not an intent of the record (a truncated one) is its own canonical name.
        canonical = self._canonical.get((category, intent), intent)
        kept = self._represented_by.get((category, canonical, path))
        return None if kept is None else self._bank[category, canonical][kept]

    def _normalised(self, category: str, intent: str, path: Sequence[str]) -> _Key:
        category, intent = one_line(category), one_line(intent)
        if not self.rules.faithful:
            category, intent = category.lower(), intent.lower()
        return category, intent, tuple(map(one_line, path))

    # Other rules, other banks.

    def check(self, embedder: Embedder) -> None:
        """Raise `BankError` for another embedder than the bank's: the thresholds belong to that one."""
        if embedder.name != self.rules.embedder:
            raise BankError(
                f"the bank was made with the embedder {self.rules.embedder!r}, this one is {embedder.name!r}; open "
                "the first one, or derive the bank for this one (PathBank.rederived)"
            )

    def check_rules(self, **wanted: Any) -> None:
        """Raise `BankError` if a rule of the bank is not as wanted; otherwise the setting would be ignored silently.

        `wanted`: fields of `BankRules` or of `Thresholds` by name, such as `cap=50, route=.3`. Raises TypeError for a
        name that is neither.
        """
        rules = vars(self.rules) | vars(self.rules.thresholds)
        if unknown := sorted(wanted.keys() - rules.keys()):
            raise TypeError(
                f"{', '.join(unknown)}: unknown rule of a bank; expected some of {', '.join(sorted(rules))}"
            )
        if different := [name for name in rules if name in wanted and rules[name] != wanted[name]]:
            listed = ", ".join(f"{name} ({rules[name]!r}, expected {wanted[name]!r})" for name in different)
            raise BankError(
                f"the bank was made by other rules: {listed}. Leave these settings out, or derive the bank by them "
                "and write it to another file (PathBank.rederived, PathBank.to_file)"
            )

    def rederived(self, embedder: Embedder, **changes: Any) -> PathBank:
        """The bank that the same record gives with another embedder or other fields of `BankRules`.

        Raises `BankError` for an embedder without known thresholds, unless `changes` has `thresholds`.
        """
        if embedder.name != self.rules.embedder and "thresholds" not in changes:
            known = known_thresholds(embedder)
            if known is None:
                raise BankError(
                    f"no thresholds are known for the embedder {embedder.name!r}: give thresholds=..., for example "
                    "those of rlkd.rationales.bank.thresholds.calibrate(embedder, entries)"
                )
            changes["thresholds"] = known
        if changes.get("faithful"):
            changes = _FAITHFUL | changes
        rules = replace(self.rules, embedder=embedder.name, **changes)
        return self._like(rules, self._record, self.generation, embedder)

    def merge(self, other: PathBank, embedder: Embedder) -> PathBank:
        """The bank derived from both records: commutative, associative, idempotent but for the reclustering.

        Pending routes stay pending until `flush`. Raises `BankError` with the fields if the rules differ.
        """
        pairs = zip(asdict(self.rules).items(), asdict(other.rules).values(), strict=True)
        if different := [f"{name} ({one!r} and {two!r})" for (name, one), two in pairs if one != two]:
            raise BankError(
                f"the banks have different rules: {', '.join(different)}. Bring one to the rules of the other first "
                "(PathBank.rederived)"
            )
        record = dict(self._record)
        for route, successes in other._record.items():
            record[route] = record[route].merged(successes) if route in record else successes
        return self._like(self.rules, record, max(self.generation, other.generation), embedder)

    def _like(
        self, rules: BankRules, record: Mapping[_Key, _Successes], generation: int, embedder: Embedder
    ) -> PathBank:
        bank = PathBank(rules)
        bank.generation = generation
        if rules.embedder == self.rules.embedder:
            bank._vectors = self._vectors
        bank._record = {route: replace(each, questions=set(each.questions)) for route, each in record.items()}
        bank.recluster(embedder)
        return bank

    # Its file.

    def to_json(self) -> dict[str, Any]:
        """The bank as JSON; two banks are equal if this is."""
        bank: dict[str, dict[str, Any]] = defaultdict(dict)
        lines: dict[_Key, dict[str, Any]] = {}
        for category, intent in self.intents():
            for each in self.paths(category, intent):
                lines[category, intent, each.names] = {"path": list(each.names), "uses": each.uses}
                bank[category].setdefault(intent, []).append(lines[category, intent, each.names])
        for (category, intent, path), kept in self._represented_by.items():
            if path != kept:
                lines[category, intent, kept].setdefault("also", []).append(list(path))
        intents: dict[str, dict[str, str]] = defaultdict(dict)
        for (category, intent), name in sorted(self._canonical.items()):
            intents[category][intent] = name
        record = [
            {"category": category, "intent": intent, "path": list(path)}
            | vars(each)
            | {"questions": sorted(each.questions)}
            for (category, intent, path), each in sorted(self._record.items())
        ]
        head = {"format": FORMAT, "version": VERSION, "rules": asdict(self.rules), "generation": self.generation}
        return {**head, "bank": bank, "intents": intents, "record": record}

    def to_file(self, path: str | os.PathLike[str]) -> None:
        """Write the bank as indented JSON, atomically: a reader sees the old file or the whole new one."""
        with atomic_file(path) as stream:
            json.dump(self.to_json(), stream, ensure_ascii=False, indent=1)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str], embedder: Embedder | None = None, **wanted: Any) -> PathBank:
        """Read a file of `to_file`.

        Raises `BankError` for any other file, for another `embedder`, and for rules that are not as `wanted`.
        """
        try:
            content = json.loads(Path(path).read_bytes().decode("utf-8"))
        except OSError as error:
            raise BankError(f"path bank {path}: {error.strerror}; write one with PathBank.to_file") from error
        except ValueError as error:
            raise BankError(f"path bank {path} is not JSON ({error}); restore it, or build it again") from error
        try:
            try:
                bank = cls._read(content)
            except (KeyError, TypeError, AttributeError) as error:
                raise BankError(
                    f"it does not have the form of version {VERSION} ({type(error).__name__}: {error}); restore it, "
                    "or build it again"
                ) from error
            if embedder is not None:
                bank.check(embedder)
            bank.check_rules(**wanted)
        except ValueError as error:
            raise BankError(f"path bank {path}: {error}") from error
        return bank

    @classmethod
    def _read(cls, content: Any) -> PathBank:
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise BankError(f"this is not a path bank; expected an object with 'format': {FORMAT!r}")
        if content.get("version") != VERSION:
            raise BankError(
                f"version {content.get('version')!r}, this program reads version {VERSION}; build the bank again, or "
                "use the release that wrote it"
            )
        rules = dict(content["rules"])
        bank = cls(BankRules(**{**rules, "thresholds": Thresholds(**rules["thresholds"])}))
        bank.generation = _checked("generation", content["generation"], _COUNT)
        for number, line in enumerate(content["record"], start=1):
            values = [_checked(f"record {number}, {name!r}", line[name], kind) for name, kind in _RECORD.items()]
            category, intent, path, questions, *others = values
            route = (category, intent, tuple(path))
            if route in bank._record:
                raise BankError(f"record {number} is there twice: {category!r}, {intent!r}, {path}")
            bank._record[route] = _Successes(set(questions), *others)
        for category, intents in content["intents"].items():
            for intent, name in intents.items():
                bank._canonical[category, intent] = _checked(f"the canonical intent of {intent!r}", name, "a text")
        represented_by: dict[_Key, StepNames] = {}
        for category, by_intent in content["bank"].items():
            for intent, paths in by_intent.items():
                for line in paths:
                    for path in (line["path"], *line.get("also", ())):
                        _checked(f"a path of {category!r}, {intent!r}", path, "a list of texts")
                        represented_by[category, intent, tuple(path)] = tuple(line["path"])
        bank._fill(represented_by)
        for (category, intent), kept in bank._bank.items():
            if unused := [list(path) for path, successes in kept.items() if not successes.questions]:
                raise BankError(
                    f"the path {unused[0]} of {category!r}, {intent!r} has no line in the record that has entered; "
                    "add one with a question id, or take the path out"
                )
        return bank


# Kinds of values in the file, and the fields of a line of the record.
_COUNT = "a whole number of at least 0"
_KINDS: dict[str, Callable[[Any], bool]] = {
    "a text": lambda value: isinstance(value, str) and value != "",
    "a list of texts": lambda value: isinstance(value, list) and value != [] and all(map(_KINDS["a text"], value)),
    _COUNT: lambda value: type(value) is int and value >= 0,
    "true or false": lambda value: isinstance(value, bool),
}
_RECORD = {
    **dict.fromkeys(("category", "intent"), "a text"),
    **dict.fromkeys(("path", "questions"), "a list of texts"),
    **dict.fromkeys(("first", "last"), _COUNT),
    "entered": "true or false",
}


def _checked(where: str, value: Any, kind: str) -> Any:
    if not _KINDS[kind](value):
        raise BankError(f"{where} is {value!r}, expected {kind}")
    return value
