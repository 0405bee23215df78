"""The path bank of D-RPC (arXiv 2605.07139): category -> canonical intent -> distinct paths, and how it grows.

A *path* is the list of the names of a rationale's steps. A teacher that writes along paths of a small bank writes
alike rationales for alike questions; new paths that led to right answers come into the bank.

    bank = PathBank.from_seed(entries, embedder)          # what the teacher answered to the first questions
    route = Router(bank, embedder).route([question])[0]   # which paths to offer
    bank.record_success("arithmetic", "compute total cost", ("AddPrices", "ApplyTax"), "q17")
    bank.flush(embedder)                                  # true once a hundred pending routes are together
    bank.to_file("bank.json")

A bank keeps a *record* of all routes that led to right answers: category, intent as the teacher worded it, path, and
the questions. Everything else is worked out from those routes of the record that have *entered*, at every flush: the
canonical intents, the distinct paths, which of them the size cap leaves. So the order in which routes came makes no
difference, banks can be merged, and an evicted path that is used again comes back. What follows the released code, and
what is ours, stands in `docs/path_bank.md`.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any, Literal, get_args

from rlkd.errors import UsageError
from rlkd.rationales.bank.clustering import Path, canonical_intents, distinct_paths
from rlkd.rationales.bank.embedders import KnownVectors, Thresholds, known_thresholds, thresholds_for
from rlkd.rationales.bank.entries import RouteEntry, one_line, path_violations, violations

if TYPE_CHECKING:
    from rlkd.rationales.bank.embedders import Embedder

FORMAT = "rlkd path bank"
VERSION = 1

Duplicates = Literal["tokens", "embedder"]


class BankError(UsageError):
    """A bank, its file or its embedder does not fit; the message names the place, what is there and the way out."""


@dataclass(frozen=True)
class Rules:
    """By what a bank is worked out from its record. Banks with different rules cannot be merged.

    Args:
        embedder: the identity of the embedder (`Embedder.name`).
        thresholds: what is near for it.
        faithful: as D-RPC's code was released: nothing of what is ours below, and intents as they are worded.
        cap: the most paths in the bank, by use (D-RPC tried 50, 75 and 125 on GSM8K and does not say how a bank of
            that size was made: this way is ours). None: no cap.
        flush_at: so many pending routes end the wait (D-RPC).
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

# A route of the record: category, intent as it was worded, path; and a place in the bank: the same, canonical.
_Route = tuple[str, str, Path]


@dataclass
class _Successes:
    """What is known of a route: the questions it solved, its place in the order, the generation of its last use."""

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
    """A path of the bank: the names of its steps, how many questions it solved, the generation of its last use."""

    names: Path
    uses: int
    last: int


class PathBank:
    """Category -> canonical intent -> distinct paths (see the top of this module)."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.generation = 0
        """How often pending routes were taken in: a `Router` of an earlier generation is out of date."""
        self._record: dict[_Route, _Successes] = {}
        self._canonical: dict[tuple[str, str], str] = {}
        self._paths: dict[tuple[str, str], list[Path]] = {}
        self._stands_for: dict[_Route, Path] = {}
        self._uses: dict[_Route, set[str]] = {}
        self._last: dict[_Route, int] = {}
        # Kept so that a flush costs what is new: how many routes wait (see `_tally`), the vectors of intents, and for
        # each category what was clustered last, all routes or those that have entered.
        self._pending = self._due = 0
        self._vectors = KnownVectors()
        self._clusterings: dict[tuple[str, bool], tuple[list[str], dict[str, str]]] = {}

    # What is in it.

    def __len__(self) -> int:
        """The number of paths."""
        return sum(map(len, self._paths.values()))

    def intents(self) -> list[tuple[str, str]]:
        """All pairs of category and canonical intent, in alphabetical order."""
        return sorted(self._paths)

    def paths(self, category: str, intent: str) -> tuple[BankPath, ...]:
        """The distinct paths of a canonical intent, those used most first; none where there is no such intent."""
        return tuple(
            self._bank_path((category, intent, path))
            for path in sorted(
                self._paths.get((category, intent), ()),
                key=lambda path: (-len(self._uses[category, intent, path]), path),
            )
        )

    def holds(self, category: str, intent: str, path: Sequence[str]) -> bool:
        """Whether a path, or a near-duplicate that stands for it, is in the bank under this intent."""
        return self._place(self._tidy(category, intent, path)) is not None

    @property
    def pending(self) -> int:
        """The routes that wait: they led to right answers, and have not entered."""
        return self._pending

    @property
    def due(self) -> int:
        """The pending routes that had a success since the last flush: `flush` waits for `rules.flush_at` of them."""
        return self._due

    def entropy(self) -> float:
        """The entropy of the uses of the bank's paths, in bits; 0 for an empty bank."""
        return _bits(len(questions) for questions in self._uses.values())

    def summary(self) -> dict[str, Any]:
        """The figures of the bank, as JSON."""
        return {
            "categories": len({category for category, _ in self._paths}),
            "intents": len(self._paths),
            "paths": len(self),
            "uses": sum(map(len, self._uses.values())),
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
        """The bank for a reader: a line for each intent, and for each path with its uses."""
        lines = [f"{len(self)} paths, {len(self._paths)} intents, {self.pending} pending, {self.entropy():.2f} bits"]
        for category, intent in self.intents():
            lines.append(f"{category} / {intent}")
            lines += [f"  {path.uses:>5}  {' > '.join(path.names)}" for path in self.paths(category, intent)]
        return "\n".join(lines)

    # How it grows.

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
        """The first bank, from a seed round: the paths of the right answers, each under the first of its intents.

        They enter at once, whatever `support` is: a bank has to begin somewhere. Entries that break the contract
        (`violations`) are left out too, unless `faithful`. `thresholds` None: the known ones of the embedder, else
        calibrated on these entries. `settings` are further fields of `Rules`.
        """
        right = [entry for entry in entries if entry.correct and (faithful or not violations(entry))]
        thresholds = thresholds or thresholds_for(embedder, right)
        bank = cls(Rules(embedder.name, thresholds, faithful, **((_FAITHFUL if faithful else {}) | settings)))
        for entry in right:
            bank.record_success(entry.category, entry.intents[0], entry.path, entry.question_id)
        for successes in bank._record.values():
            successes.entered = True
        bank.recluster(embedder)
        return bank

    def record_success(self, category: str, intent: str, path: Sequence[str], question_id: str) -> None:
        """Count a right answer along a path: a use of it where the bank holds it, else it is pending.

        Only for right answers; a question counts once for a path. Raises `BankError` for an empty path, category,
        intent or name.
        """
        route = self._tidy(category, intent, path)
        if not all((*route[:2], *route[2], route[2])):
            raise BankError(
                f"question {question_id!r}: a route with an empty part, {route}; expected none to be empty"
            )
        order = len(self._record) if self.rules.faithful else 0
        known = self._record.get(route)
        if known is not None:
            self._tally(known, -1)
        successes = self._record.setdefault(route, _Successes(set(), order, self.generation, False))
        successes.questions.add(one_line(question_id))
        successes.last = self.generation
        place = self._place(route)
        if place is not None:
            successes.entered = True
            self._uses[place].add(one_line(question_id))
            self._last[place] = self.generation
        self._tally(successes, 1)

    def record(self, entry: RouteEntry) -> bool:
        """Count an entry if its answer is right; returns whether it was counted.

        A path that is not fit for a bank (`path_violations`) is not counted either, unless `faithful`.
        """
        fit = (
            entry.correct
            and entry.intents
            and (self.rules.faithful or not path_violations(entry.path, entry.question))
        )
        if fit:
            self.record_success(entry.category, entry.intents[0], entry.path, entry.question_id)
        return bool(fit)

    def flush(self, embedder: Embedder, *, force: bool = False) -> bool:
        """Take pending routes in and cluster anew, if `rules.flush_at` are due; returns whether it did.

        Those enter whose path solved `rules.support` distinct questions under intents that cluster together; others
        stay pending. `force` does it if there are any pending routes: at the end of a run, or after a merge.
        """
        self.check(embedder)
        if (self.due < self.rules.flush_at) and not (force and self.pending):
            return False
        canonical = self._clustered(self._record, embedder, entered=False)
        questions: dict[_Route, set[str]] = {}
        for (category, intent, path), successes in self._record.items():
            questions.setdefault((category, canonical[category, intent], path), set()).update(successes.questions)
        for (category, intent, path), successes in self._record.items():
            if len(questions[category, canonical[category, intent], path]) >= self.rules.support:
                successes.entered = True
        self.recluster(embedder)
        self.generation += 1
        self._tally_all()
        return True

    def recluster(self, embedder: Embedder) -> None:
        """Work out canonical intents and distinct paths anew from the routes that have entered, and evict.

        Of near-duplicates that with more uses is kept (faithful: that which came first). Beyond `rules.cap` the paths
        with the fewest uses go, among these the ones whose last use was in the earliest generation, then by the
        alphabet. Raises `BankError` for another embedder than the bank's.
        """
        self.check(embedder)
        entered = {route: successes for route, successes in self._record.items() if successes.entered}
        self._canonical = self._clustered(entered, embedder, entered=True)
        found: dict[_Route, _Successes] = {}
        for (category, intent, path), successes in entered.items():
            place = (category, self._canonical[category, intent], path)
            found[place] = found[place].merged(successes) if place in found else successes
        by_intent: dict[tuple[str, str], list[Path]] = {}
        for category, intent, path in sorted(found, key=lambda place: self._precedence(place, found[place])):
            by_intent.setdefault((category, intent), []).append(path)
        self._stands_for = {}
        for (category, intent), paths in by_intent.items():
            judge = embedder if self.rules.duplicates == "embedder" else None
            for path, kept in distinct_paths(paths, self.rules.thresholds.duplicate, judge).items():
                self._stands_for[category, intent, path] = kept
        self._count()
        ranked = sorted(self._uses, key=lambda place: (-len(self._uses[place]), -self._last[place], place))
        staying = set(ranked[: self.rules.cap])
        self._stands_for = {
            (category, intent, path): kept
            for (category, intent, path), kept in sorted(self._stands_for.items())
            if (category, intent, kept) in staying
        }
        self._count()
        self._tally_all()

    def _precedence(self, place: _Route, successes: _Successes) -> tuple[Any, ...]:
        # Faithful: the order in which paths came. Ours: most used first, so that the order makes no difference.
        return (successes.first if self.rules.faithful else -len(successes.questions), place)

    def _clustered(self, routes: Iterable[_Route], embedder: Embedder, *, entered: bool) -> dict[tuple[str, str], str]:
        """The canonical intents of some routes: a category whose intents are those of the last time is not clustered
        again."""
        by_category: dict[str, set[str]] = {}
        for category, intent, _ in routes:
            by_category.setdefault(category, set()).add(intent)
        canonical: dict[tuple[str, str], str] = {}
        for category, found in sorted(by_category.items()):
            intents = sorted(found)
            for kind in (entered, not entered):
                last = self._clusterings.get((category, kind))
                if last is not None and last[0] == intents:
                    names = last[1]
                    break
            else:
                names = canonical_intents(intents, embedder, self.rules.thresholds.eps, self._vectors)
            self._clusterings[category, entered] = intents, names
            canonical |= {(category, intent): name for intent, name in names.items()}
        return canonical

    def _tally(self, successes: _Successes, sign: int) -> None:
        if not successes.entered:
            self._pending += sign
            self._due += sign if successes.last == self.generation else 0

    def _tally_all(self) -> None:
        self._pending = self._due = 0
        for successes in self._record.values():
            self._tally(successes, 1)

    def _count(self) -> None:
        """Work out paths and uses from the record, `_canonical` and `_stands_for`."""
        self._paths, self._uses, self._last = {}, {}, {}
        for (category, intent, path), kept in self._stands_for.items():
            if path == kept:
                self._paths.setdefault((category, intent), []).append(path)
                self._uses[category, intent, path] = set()
                self._last[category, intent, path] = 0
        for route, successes in self._record.items():
            place = self._place(route) if successes.entered else None
            if place is not None:
                self._uses[place] |= successes.questions
                self._last[place] = max(self._last[place], successes.last)

    def _place(self, route: _Route) -> _Route | None:
        """Where a route stands in the bank; None where it does not."""
        category, intent, path = route
        # A canonical name that is no intent of the record (one that was cut) stands for itself.
        canonical = self._canonical.get((category, intent), intent)
        kept = self._stands_for.get((category, canonical, path))
        return None if kept is None else (category, canonical, kept)

    def _bank_path(self, place: _Route) -> BankPath:
        return BankPath(place[2], len(self._uses[place]), self._last[place])

    def _tidy(self, category: str, intent: str, path: Sequence[str]) -> _Route:
        category, intent = one_line(category), one_line(intent)
        if not self.rules.faithful:
            category, intent = category.lower(), intent.lower()
        return category, intent, tuple(map(one_line, path))

    # Several banks, other embedders.

    def check(self, embedder: Embedder) -> None:
        """Raise `BankError` if this is not the embedder of the bank: its thresholds would mean something else."""
        if embedder.name != self.rules.embedder:
            raise BankError(
                f"the bank was made with the embedder {self.rules.embedder!r}, this one is {embedder.name!r}; open "
                "the first one, or cluster the bank anew (PathBank.rederived)"
            )

    def check_rules(self, **wanted: Any) -> None:
        """Raise `BankError` if a rule of the bank is not as wanted: nothing of it would be heeded in silence.

        `wanted`: fields of `Rules` or of `Thresholds` by name, such as `cap=50, route=.3`. Raises TypeError for a name
        that is neither.
        """
        mine = {each.name: getattr(self.rules, each.name) for each in fields(Rules)}
        mine |= {each.name: getattr(self.rules.thresholds, each.name) for each in fields(Thresholds)}
        if unknown := sorted(wanted.keys() - mine.keys()):
            raise TypeError(f"{', '.join(unknown)}: no rule of a bank; expected some of {', '.join(sorted(mine))}")
        if different := [name for name in mine if name in wanted and mine[name] != wanted[name]]:
            told = ", ".join(f"{name} ({mine[name]!r}, asked for is {wanted[name]!r})" for name in different)
            raise BankError(
                f"the bank was made by other rules: {told}. Leave these settings out, or work the bank out anew by "
                "them and write it to another file (PathBank.rederived, PathBank.to_file)"
            )

    def rederived(self, embedder: Embedder, **changes: Any) -> PathBank:
        """The bank that the same record gives with another embedder or other fields of `Rules`.

        Raises `BankError` for an embedder without known thresholds, unless `changes` has `thresholds`.
        """
        if embedder.name != self.rules.embedder and "thresholds" not in changes:
            known = known_thresholds(embedder)
            if known is None:
                raise BankError(
                    f"no thresholds are known for the embedder {embedder.name!r}: give thresholds=..., for example "
                    "those of rlkd.rationales.bank.embedders.calibrate(embedder, entries)"
                )
            changes["thresholds"] = known
        if changes.get("faithful"):
            changes = _FAITHFUL | changes
        return self._like(replace(self.rules, embedder=embedder.name, **changes), self._record, embedder)

    def merge(self, other: PathBank, embedder: Embedder) -> PathBank:
        """The bank of both records, clustered anew.

        Commutative, associative, and a bank merged with itself is that bank clustered anew: the records are united
        (questions, the earlier place in the order, the later use), and the rest follows from them. What does not
        commute is recording: two banks that grew apart flushed at other moments than one bank would have, and their
        generations count different flushes, so ties by recency mean little across banks. Pending routes stay pending,
        until `flush`. Raises `BankError` where the rules differ, with the fields.
        """
        mine, theirs = asdict(self.rules), asdict(other.rules)
        different = [f"{name} ({mine[name]!r} and {theirs[name]!r})" for name in mine if mine[name] != theirs[name]]
        if different:
            raise BankError(
                f"the banks have different rules: {', '.join(different)}. Bring one to the rules of the other first "
                "(PathBank.rederived)"
            )
        record = dict(self._record)
        for route, successes in other._record.items():
            record[route] = record[route].merged(successes) if route in record else successes
        merged = self._like(self.rules, record, embedder)
        merged.generation = max(self.generation, other.generation)
        merged._tally_all()
        return merged

    def _like(self, rules: Rules, record: Mapping[_Route, _Successes], embedder: Embedder) -> PathBank:
        bank = PathBank(rules)
        bank.generation = self.generation
        if rules.embedder == self.rules.embedder:
            bank._vectors = self._vectors
        bank._record = {route: replace(record[route], questions=set(record[route].questions)) for route in record}
        bank.recluster(embedder)
        return bank

    # Its file.

    def to_json(self) -> dict[str, Any]:
        """The bank as JSON; two banks are the same if this is."""
        near: dict[_Route, list[Path]] = {}
        for (category, intent, path), kept in self._stands_for.items():
            near.setdefault((category, intent, kept), []).extend([path] if path != kept else [])
        bank: dict[str, dict[str, Any]] = {}
        for category, intent in self.intents():
            bank.setdefault(category, {})[intent] = [
                {"path": list(path.names), "uses": path.uses}
                | (
                    {"also": [list(each) for each in also]}
                    if (also := sorted(near[category, intent, path.names]))
                    else {}
                )
                for path in self.paths(category, intent)
            ]
        intents: dict[str, dict[str, str]] = {}
        for (category, intent), name in sorted(self._canonical.items()):
            intents.setdefault(category, {})[intent] = name
        return {
            "format": FORMAT,
            "version": VERSION,
            "rules": asdict(self.rules),
            "generation": self.generation,
            "bank": bank,
            "intents": intents,
            "record": [
                {
                    "category": category,
                    "intent": intent,
                    "path": list(path),
                    "questions": sorted(successes.questions),
                    "first": successes.first,
                    "last": successes.last,
                    "entered": successes.entered,
                }
                for (category, intent, path), successes in sorted(self._record.items())
            ],
        }

    def to_file(self, path: str | os.PathLike[str]) -> None:
        """Write the bank as JSON that a person can read, at once: a reader sees the old file or the whole new one."""
        target = FilePath(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{target.name}.{os.getpid()}.part")
        try:
            with part.open("w", encoding="utf-8") as stream:
                stream.write(_laid_out(self.to_json()) + "\n")
                stream.flush()
                os.fsync(stream.fileno())
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str], embedder: Embedder | None = None, **wanted: Any) -> PathBank:
        """Read what `to_file` wrote.

        Raises `BankError` for anything else, if `embedder` is not the bank's, and if its rules are not as `wanted`
        (`check_rules`).
        """
        try:
            content = json.loads(FilePath(path).read_bytes().decode("utf-8"))
        except OSError as error:
            raise BankError(f"path bank {path}: {error.strerror}; write one with PathBank.to_file") from error
        except ValueError as error:
            raise BankError(f"path bank {path} is no JSON ({error}); restore it, or build it again") from error
        try:
            bank = cls._read(content)
            if embedder is not None:
                bank.check(embedder)
            bank.check_rules(**wanted)
        except BankError as error:
            raise BankError(f"path bank {path}: {error}") from None
        return bank

    @classmethod
    def _read(cls, content: Any) -> PathBank:
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise BankError(f"this is no path bank; expected an object with 'format': {FORMAT!r}")
        if content.get("version") != VERSION:
            raise BankError(
                f"version {content.get('version')!r}, this program reads version {VERSION}; build the bank again, or "
                "take the release that wrote it"
            )
        try:
            return cls._filled(content)
        except BankError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise BankError(
                f"it does not have the form of version {VERSION} ({type(error).__name__}: {error}); restore it, or "
                "build it again"
            ) from error

    @classmethod
    def _filled(cls, content: Mapping[str, Any]) -> PathBank:
        rules = dict(content["rules"])
        bank = cls(Rules(**{**rules, "thresholds": Thresholds(**rules["thresholds"])}))
        bank.generation = _count_of("generation", content["generation"])
        for number, line in enumerate(content["record"]):
            where = f"record {number + 1}"
            category, intent = (_text(f"{where}, {name!r}", line[name]) for name in ("category", "intent"))
            path, questions = (_list_of_texts(f"{where}, {name!r}", line[name]) for name in ("path", "questions"))
            first, last = (_count_of(f"{where}, {name!r}", line[name]) for name in ("first", "last"))
            if not isinstance(line["entered"], bool):
                raise BankError(f"{where}, 'entered' is {line['entered']!r}, expected true or false")
            if (category, intent, path) in bank._record:
                raise BankError(f"{where} is there twice: {category!r}, {intent!r}, {list(path)}")
            bank._record[category, intent, path] = _Successes(set(questions), first, last, line["entered"])
        for category, intents in content["intents"].items():
            for intent, name in intents.items():
                bank._canonical[category, intent] = _text(f"the canonical intent of {intent!r}", name)
        for category, by_intent in content["bank"].items():
            for intent, paths in by_intent.items():
                for line in paths:
                    where = f"a path of {category!r}, {intent!r}"
                    kept = _list_of_texts(where, line["path"])
                    for same in (kept, *(_list_of_texts(where, also) for also in line.get("also", ()))):
                        bank._stands_for[category, intent, same] = kept
        bank._stands_for = dict(sorted(bank._stands_for.items()))
        bank._count()
        bank._tally_all()
        for (category, intent, path), users in bank._uses.items():
            if not users:
                raise BankError(
                    f"the path {list(path)} of {category!r}, {intent!r} has no line in the record that has entered; "
                    "add one with a question id, or take the path out"
                )
        return bank


def path_entropy(paths: Iterable[Path]) -> float:
    """The entropy of how often each path occurs among `paths`, in bits; 0 for none.

    >>> path_entropy([("A",), ("A",), ("B",), ("C",)])
    1.5
    """
    return _bits(Counter(paths).values())


def _bits(counts: Iterable[int]) -> float:
    sizes = [count for count in counts if count]
    total = sum(sizes)
    # `fsum` rounds once, so the order of the counts makes no difference.
    return math.fsum(size / total * math.log2(total / size) for size in sizes)


def _text(where: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise BankError(f"{where} is {value!r}, expected a text")
    return value


def _list_of_texts(where: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or not all(isinstance(each, str) and each for each in value):
        raise BankError(f"{where} is {value!r}, expected a list of texts")
    return tuple(value)


def _count_of(where: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise BankError(f"{where} is {value!r}, expected a whole number of at least 0")
    return value


def _laid_out(value: Any, margin: str = "", before: int = 0) -> str:
    """JSON with whatever fits into a line of 119 columns on one line; `before` columns of it are taken."""
    flat = json.dumps(value, ensure_ascii=False)
    if len(margin) + before + len(flat) <= 118 or not isinstance(value, dict | list) or not value:
        return flat
    deeper = margin + " "
    if isinstance(value, dict):
        keys = {json.dumps(key, ensure_ascii=False) + ": ": each for key, each in value.items()}
        parts = [key + _laid_out(each, deeper, len(key)) for key, each in keys.items()]
    else:
        parts = [_laid_out(each, deeper) for each in value]
    opening, closing = "{}" if isinstance(value, dict) else "[]"
    inside = f",\n{deeper}".join(parts)
    return f"{opening}\n{deeper}{inside}\n{margin}{closing}"
