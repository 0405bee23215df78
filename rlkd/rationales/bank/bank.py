"""The path bank of D-RPC (arXiv 2605.07139): category -> canonical intent -> distinct paths, and its growth.

A *path* is the list of the step names of a rationale. A teacher that writes along the paths of a small bank writes
similar rationales for similar questions; new paths that led to right answers enter the bank.

    bank = PathBank.from_seed(entries, embedder)          # the teacher's routes for the first questions
    route = Router(bank, embedder).route([question])[0]   # the paths to offer
    bank.record_success("arithmetic", "compute total cost", ("AddPrices", "ApplyTax"), "q17")
    bank.flush(embedder)                                  # True once a hundred routes are due
    bank.to_file("bank.json")

A bank keeps a *record* of every route that led to a right answer: category, intent as the teacher worded it, path, and
the questions. Everything else is derived from the routes of the record that have *entered*, at every flush: the
canonical intents, the distinct paths, and which of them fit under the size cap. So the order of the routes makes
no difference, banks can be merged, and an evicted path that is used again comes back. `docs/path_bank.md` lists what
follows the released code and what is ours.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
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
        faithful: D-RPC's code as released: without our extensions below, and with intents as worded.
        cap: maximum number of paths in the bank, by use (D-RPC tried 50, 75 and 125 on GSM8K and does not say how a
            bank of that size was made; this way is ours). None: no cap.
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
        return _Successes(
            self.questions | other.questions,
            min(self.first, other.first),
            max(self.last, other.last),
            self.entered or other.entered,
        )


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
        # Routes of the record that have not entered, and those of them with a success since the last flush.
        self._pending: set[_Key] = set()
        self._due: set[_Key] = set()
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
        return len(self._pending)

    @property
    def due(self) -> int:
        """The number of pending routes with a success since the last flush; `flush` waits for `rules.flush_at`."""
        return len(self._due)

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

        They enter at once, whatever `support` is: a bank has to start somewhere. Entries that break the contract
        (`violations`) are left out too, unless `faithful`. `thresholds` None: the known ones of the embedder, else
        calibrated on these entries. `settings` are further fields of `BankRules`.
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
        if successes.entered:
            self._pending.discard(route)
            self._due.discard(route)
        else:
            self._pending.add(route)
            self._due.add(route)

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

        Those enter whose path solved `rules.support` distinct questions under intents that cluster together; others
        stay pending. `force` does it if any route is pending: at the end of a run, or after a merge.
        """
        self.check(embedder)
        if self.due < self.rules.flush_at and not (force and self.pending):
            return False
        canonical = self._clustered(self._record, embedder)
        questions: dict[_Key, set[str]] = {}
        for (category, intent, path), successes in self._record.items():
            questions.setdefault((category, canonical[category, intent], path), set()).update(successes.questions)
        for category, intent, path in self._pending:
            if len(questions[category, canonical[category, intent], path]) >= self.rules.support:
                self._record[category, intent, path].entered = True
        self.generation += 1
        self.recluster(embedder)
        return True

    def recluster(self, embedder: Embedder) -> None:
        """Derive canonical intents and distinct paths again from the routes that have entered, and evict.

        Of near-duplicates the one with more uses is kept (faithful: the first). Beyond `rules.cap` the paths with the
        fewest uses go, among these the ones last used in the earliest generation, then by the alphabet. Raises
        `BankError` for another embedder than the bank's.
        """
        self.check(embedder)
        entered = {route: successes for route, successes in self._record.items() if successes.entered}
        self._canonical = self._clustered(entered, embedder)
        by_intent: dict[tuple[str, str], dict[StepNames, _Successes]] = {}
        for (category, intent, path), successes in entered.items():
            paths = by_intent.setdefault((category, self._canonical[category, intent]), {})
            paths[path] = paths[path].merged(successes) if path in paths else successes
        judge = embedder if self.rules.duplicates == "embedder" else None
        represented_by: dict[_Key, StepNames] = {}
        for (category, intent), paths in by_intent.items():
            ordered = sorted(paths, key=lambda path: (self._precedence(paths[path]), path))
            for path, kept in distinct_paths(ordered, self.rules.thresholds.duplicate, judge).items():
                represented_by[category, intent, path] = kept
        self._fill(represented_by)
        uses = {(*pair, path): each for pair, paths in self._bank.items() for path, each in paths.items()}
        ranked = sorted(uses, key=lambda key: (-len(uses[key].questions), -uses[key].last, key))
        staying = set(ranked[: self.rules.cap])
        self._fill({key: kept for key, kept in represented_by.items() if (*key[:2], kept) in staying})

    def _precedence(self, successes: _Successes) -> int:
        # Faithful: the order in which paths came. Ours: most used first, so that the order makes no difference.
        return successes.first if self.rules.faithful else -len(successes.questions)

    def _clustered(self, routes: Iterable[_Key], embedder: Embedder) -> dict[tuple[str, str], str]:
        """The canonical intents of some routes; the last two clusterings of a category (all, entered) are cached."""
        by_category: dict[str, set[str]] = {}
        for category, intent, _ in routes:
            by_category.setdefault(category, set()).add(intent)
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
        """Derive the bank and the pending routes from the record, the canonical intents and `represented_by`."""
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
        self._pending = {route for route, successes in self._record.items() if not successes.entered}
        self._due = {route for route in self._pending if self._record[route].last == self.generation}

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
        rules = {each.name: getattr(self.rules, each.name) for each in fields(BankRules)}
        rules |= {each.name: getattr(self.rules.thresholds, each.name) for each in fields(Thresholds)}
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
        """The bank derived from both records.

        Commutative, associative, and a bank merged with itself is that bank reclustered: the records are united
        (questions, the earlier rank, the later use), and the rest follows from them. Recording does not commute: two
        banks that grew apart were flushed at other moments than one bank would have been, and their generations count
        different flushes, so ties by recency mean little across banks. Pending routes stay pending until `flush`.
        Raises `BankError` with the fields if the rules differ.
        """
        rules, theirs = asdict(self.rules), asdict(other.rules)
        if different := [
            f"{name} ({rules[name]!r} and {theirs[name]!r})" for name in rules if rules[name] != theirs[name]
        ]:
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
        also: dict[_Key, list[StepNames]] = {}
        for (category, intent, path), kept in self._represented_by.items():
            if path != kept:
                also.setdefault((category, intent, kept), []).append(path)
        bank: dict[str, dict[str, Any]] = {}
        for category, intent in self.intents():
            lines = bank.setdefault(category, {}).setdefault(intent, [])
            for each in self.paths(category, intent):
                near = sorted(also.get((category, intent, each.names), ()))
                line: dict[str, Any] = {"path": list(each.names), "uses": each.uses}
                lines.append(line | ({"also": list(map(list, near))} if near else {}))
        intents: dict[str, dict[str, str]] = {}
        for (category, intent), name in sorted(self._canonical.items()):
            intents.setdefault(category, {})[intent] = name
        record = [
            {"category": category, "intent": intent, "path": list(path)}
            | {"questions": sorted(each.questions), "first": each.first, "last": each.last, "entered": each.entered}
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

        Raises `BankError` for any other file, for another `embedder` than the bank's, and for rules that are not as
        `wanted` (`check_rules`).
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
            values = {name: _checked(f"record {number}, {name!r}", line[name], kind) for name, kind in _RECORD.items()}
            route = (values["category"], values["intent"], tuple(values["path"]))
            if route in bank._record:
                raise BankError(f"record {number} is there twice: {route[0]!r}, {route[1]!r}, {list(route[2])}")
            bank._record[route] = _Successes(
                set(values["questions"]), values["first"], values["last"], values["entered"]
            )
        for category, intents in content["intents"].items():
            for intent, name in intents.items():
                bank._canonical[category, intent] = _checked(f"the canonical intent of {intent!r}", name, _TEXT)
        represented_by: dict[_Key, StepNames] = {}
        for category, by_intent in content["bank"].items():
            for intent, paths in by_intent.items():
                for line in paths:
                    for path in (line["path"], *line.get("also", ())):
                        _checked(f"a path of {category!r}, {intent!r}", path, _TEXTS)
                        represented_by[category, intent, tuple(path)] = tuple(line["path"])
        bank._fill(represented_by)
        for (category, intent), kept in bank._bank.items():
            if unused := [list(path) for path, successes in kept.items() if not successes.questions]:
                raise BankError(
                    f"the path {unused[0]} of {category!r}, {intent!r} has no line in the record that has entered; "
                    "add one with a question id, or take the path out"
                )
        return bank


# A check of a value of the file, and its description.
_Kind = tuple[Callable[[Any], bool], str]
_TEXT: _Kind = (lambda value: isinstance(value, str) and value != "", "a text")
_TEXTS: _Kind = (
    lambda value: isinstance(value, list) and value != [] and all(map(_TEXT[0], value)),
    "a list of texts",
)
_COUNT: _Kind = (lambda value: type(value) is int and value >= 0, "a whole number of at least 0")
_RECORD: dict[str, _Kind] = {
    "category": _TEXT,
    "intent": _TEXT,
    "path": _TEXTS,
    "questions": _TEXTS,
    "first": _COUNT,
    "last": _COUNT,
    "entered": (lambda value: isinstance(value, bool), "true or false"),
}


def _checked(where: str, value: Any, kind: _Kind) -> Any:
    if not kind[0](value):
        raise BankError(f"{where} is {value!r}, expected {kind[1]}")
    return value
