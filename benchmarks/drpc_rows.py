"""Make rows of the teacher data that D-RPC's authors released (arXiv 2605.07139, github.com/Marvelrex/D-RPC).

    python benchmarks/drpc_rows.py D-RPC/data/GSM8K/teacher/rpb_second_round.json.gz drpc-gsm8k.jsonl
    python benchmarks/drpc_rows.py D-RPC/data/GSM8K/teacher/cot.jsonl.gz cot-gsm8k.jsonl

The first kind of file has step-keyed rationales: each becomes one line per step and `#### answer`, with its structure,
so that `recipes/sft.py` and `recipes/rlkd.py` can read the rows. The second kind, of the baselines, has texts. Records
without a rationale are left out, and without --wrong those whose answer is not the gold one. The counts are printed.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rlkd.data.files import file_records
from rlkd.files import write_atomically
from rlkd.rationales.write.prompts import read_reply


def rows(
    records: Iterable[Mapping[str, Any]], counts: Counter[str], *, wrong: bool = False
) -> Iterator[dict[str, Any]]:
    """The rows of released records of either kind; `counts` gets their number by what became of them."""
    for number, record in enumerate(records):
        is_baseline = "response_rationale" in record
        right = record["gold_matches_answer" if is_baseline else "ans_matches_gold"]
        rationale = record["response_rationale" if is_baseline else "rationale"]
        gold = record["gold"] if is_baseline else record["gold_answer_extracted"]
        answer = record["response_ans" if is_baseline else "ans"]
        row = {"id": f"drpc-{record.get('index', number)}", "question": record["question"], "answer": str(gold)}
        if isinstance(rationale, Mapping) or (not is_baseline and rationale):
            reply = read_reply(json.dumps({"rationale": rationale, "answer": None if answer is None else str(answer)}))
            if reply is not None:
                row |= {"rationales": [reply.text()], "structures": [reply.structure().to_list()]}
        elif rationale and str(rationale).strip():
            row["rationales"] = [f"{str(rationale).strip()}\n#### {answer}"]
        if "rationales" not in row:
            counts["without a rationale"] += 1
        elif not right and not wrong:
            counts["wrong, left out"] += 1
        else:
            counts["kept"] += 1
            yield row


def main() -> None:
    """Read, convert, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("source", type=Path, help="a released teacher file, .json.gz or .jsonl.gz")
    parser.add_argument("target", type=Path, help="file of rows to write, .jsonl")
    parser.add_argument(
        "--wrong", action="store_true", help="keep rationales whose answer is wrong, as the paper does"
    )
    arguments = parser.parse_args()
    counts: Counter[str] = Counter()
    records = (record for _, record in file_records(arguments.source, "train"))
    lines = [json.dumps(row, ensure_ascii=False) for row in rows(records, counts, wrong=arguments.wrong)]
    write_atomically(arguments.target, "".join(f"{line}\n" for line in lines))
    print(f"{arguments.target}: {', '.join(f'{number:,} {what}' for what, number in counts.most_common())}")


if __name__ == "__main__":
    main()
