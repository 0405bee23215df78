"""What `dataset_name` names: an embedded sample, files, a folder, or a dataset of the hub; and their records.

    gsm8k-sample                  an embedded sample (`rlkd.data.samples`)
    traces.jsonl.gz               a file (`rlkd.data.files`)
    data/*.parquet                all files that match, in the order of their names; ** goes into folders
    saved/                        a folder of `Dataset.save_to_disk` or `DatasetDict.save_to_disk`
    exports/                      another folder, which `datasets` reads by its own rules
    open-r1/OpenR1-Math-220k      a dataset of the hub

A list of these is read one behind the other. No code of a dataset is ever run: `datasets` has given up loading
scripts, and nothing here passes `trust_remote_code`.
"""

from __future__ import annotations

import difflib
import glob
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rlkd.data.files import COMPRESSED, KINDS, Located, OnError, file_kind, file_records, file_stem
from rlkd.data.rows import raise_it
from rlkd.data.samples import SAMPLES, embedded_rows
from rlkd.errors import UsageError

Source = str | Sequence[str]


class Record(NamedTuple):
    """An unchecked row: its location for error messages, a name made from source and position, and its columns."""

    where: str
    name: str
    columns: Mapping[str, Any]


def source_name(source: Source) -> str:
    """A source in messages."""
    return source if isinstance(source, str) else ", ".join(source)


def records(
    source: Source,
    split: str,
    config: str | None = None,
    revision: str | None = None,
    *,
    names: Collection[str] | None = None,
    streams: bool = False,
    on_error: OnError = raise_it,
) -> Iterator[Record]:
    """The unchecked records of a source, read as they are asked for.

    Args:
        source: one or several, as described above.
        split: of samples, saved folders and datasets of the hub; in a JSON document, the key of the rows.
        config: configuration of a dataset of the hub.
        revision: of a dataset of the hub.
        names: columns to read; None: all.
        streams: whether a dataset of the hub is read over the network as far as needed, instead of downloaded whole.
        on_error: see `rlkd.data.files.file_records`.

    Raises `UsageError` for a source that is not there or cannot be read, `RowError` for a malformed record.
    """
    for part in [source] if isinstance(source, str) else source:
        for each in _expanded(part):
            stem = file_stem(each)
            located = _located(each, split, config, revision, names, streams, on_error)
            for position, (where, columns) in enumerate(located):
                if names is not None:
                    columns = {name: value for name, value in columns.items() if name in names}
                yield Record(where, f"{stem}-{position}", columns)


def _expanded(source: str) -> list[str]:
    """The files that a pattern matches, or the source itself; raises `UsageError` where none matches."""
    if source in SAMPLES or not glob.has_magic(source) or Path(source).expanduser().exists():
        return [source]
    found = sorted(glob.glob(str(Path(source).expanduser()), recursive=True))  # noqa: PTH207 - absolute patterns
    files = [path for path in found if Path(path).is_file()]
    if not files:
        what = "only folders match; name their files" if found else "no file matches"
        raise UsageError(f"dataset_name {source}: {what}, such as FOLDER/*.jsonl or FOLDER/**/*.parquet")
    return files


def _located(
    source: str,
    split: str,
    config: str | None,
    revision: str | None,
    names: Collection[str] | None,
    streams: bool,
    on_error: OnError,
) -> Iterator[Located]:
    path = Path(source).expanduser()
    if source in SAMPLES:
        for row in embedded_rows(source, split):
            yield f"{source}, row {row['id']}", row
    elif _is_file(source):
        yield from file_records(path, split, names, on_error)
    elif (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        yield from _table_records(_saved(path, split), str(path), names)
    else:
        loaded = _loaded(source, split, config, revision, streams)
        yield from _table_records(loaded, f"{source}, split {split}", names)


def _is_file(source: str) -> bool:
    """Whether a source is a file that can be read; raises `UsageError` for a missing one and for one of another kind.

    Anything else, such as a folder, may be a dataset of the hub.
    """
    path = Path(source).expanduser()
    kind, _ = file_kind(path)
    if path.is_dir():
        return False
    if not path.is_file():
        if kind or source.startswith(("/", "./", "../", "~")):
            raise UsageError(f"there is no file {path.absolute()}.{_meant(source)}")
        return False
    if not kind:
        raise UsageError(
            f"{path}: files of the kind {path.suffix or 'without a suffix'} are not read. The kinds are "
            f"{', '.join(KINDS)}, texts also with {', '.join(COMPRESSED)} behind it"
        )
    return True


def _meant(source: str) -> str:
    """The names near to one that is not there: embedded samples, and files beside it; with a space before, or ""."""
    path = Path(source).expanduser()
    beside = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    close = difflib.get_close_matches(source, SAMPLES, n=1, cutoff=0.7)
    # The same name with another suffix is as near as a slip of the pen.
    same = [name for name in sorted(beside) if name != path.name and file_stem(name) == file_stem(path.name)]
    files = same[:1] or difflib.get_close_matches(path.name, beside, n=1, cutoff=0.7)
    meant = close or [str(path.parent / name) for name in files]
    return f" Did you mean {meant[0]}?" if meant else ""


def _saved(path: Path, split: str) -> Any:
    """A dataset of `save_to_disk`, memory-mapped; raises `UsageError` where it is damaged or lacks the split."""
    import datasets

    try:
        found = datasets.load_from_disk(str(path))
    except Exception as error:  # pyarrow, json and the file system each have their own
        raise UsageError(f"{path} cannot be read as a folder of save_to_disk: {_reason(error)}") from error
    if not isinstance(found, dict):
        return found
    if split not in found:
        raise UsageError(f"{path} has no split {split!r}; there are {', '.join(found)} (dataset_train_split)")
    return found[split]


def _loaded(source: str, split: str, config: str | None, revision: str | None, streams: bool) -> Any:
    """A dataset of the hub, or of a folder that `datasets` knows to read."""
    import datasets

    folder = Path(source).expanduser()
    is_local = folder.is_dir()
    streamed = {"streaming": True} if streams and not is_local and not datasets.config.HF_HUB_OFFLINE else {}
    name = str(folder) if is_local else source
    try:
        return datasets.load_dataset(name, config, split=split, revision=revision, **streamed)
    except Exception as error:  # the hub, the network and every reader have their own
        place = f"dataset {source!r} (config {config!r}, split {split!r})"
        if "scripts are no longer supported" in str(error):
            raise UsageError(
                f"{place} is a Python script, which is not run. The hub has the rows of most such datasets as "
                f"Parquet: hf download {source} --repo-type dataset --revision refs/convert/parquet --local-dir "
                f"FOLDER, then dataset_name: FOLDER/**/*.parquet"
            ) from error
        if is_local:
            way_out = f"Name its files: dataset_name: {folder}/*.jsonl"
        else:
            way_out = (
                f"Give a dataset of the hub, a file ({', '.join(KINDS)}), a folder, or one of {', '.join(SAMPLES)}."
            )
        meant = "" if is_local else _meant(source)
        raise UsageError(f"{place} cannot be loaded: {_reason(error)}.{meant} {way_out}") from error


def _reason(error: BaseException) -> str:
    """What went wrong, in one line; `datasets` wraps the errors of its readers."""
    while type(error).__name__.startswith("DatasetGeneration") and error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).split()) or type(error).__name__
    return (text if len(text) <= 300 else text[:297] + "...").rstrip(".")


def _table_records(dataset: Any, place: str, names: Collection[str] | None) -> Iterator[Located]:
    if names is not None and dataset.column_names is not None:
        dataset = dataset.select_columns([name for name in dataset.column_names if name in names])
    rows = iter(dataset)
    position = 0
    while True:
        try:
            record = next(rows)
        except StopIteration:
            return
        except Exception as error:  # the network, a damaged shard, a value that does not fit
            raise UsageError(f"{place}, row {position} cannot be read: {_reason(error)}") from error
        yield f"{place}, row {position}", record
        position += 1
