"""What becomes of a thousand jobs that may say anything, in an operator and a cluster in memory.

    cd tests && python -m benchmarks.fuzz [--jobs N] [--seed SEED]

Every job is refused by the schema, or not accepted with a remedy, or worked on until nothing more happens; anything
else is printed with its number, and the exit code is 1.
"""

import argparse
import os
import sys
import time
from collections import Counter
from datetime import date
from statistics import median

from fuzzing.bodies import fuzzed
from fuzzing.running import Verdict, run


def main() -> None:
    """Run all jobs and print what became of them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=6)
    options = parser.parse_args()
    called = f"python -m benchmarks.fuzz --jobs {options.jobs} --seed {options.seed}"
    print(f"{called}  ({date.today().isoformat()}, {os.cpu_count()} cores)\n", flush=True)  # noqa: DTZ011
    started, verdicts, rounds, bugs = time.perf_counter(), Counter[str](), dict[str, list[int]](), 0
    for number, job in enumerate(fuzzed(options.seed, options.jobs)):
        try:
            end = run(job.body)
        except Exception as error:  # noqa: BLE001 -- what this program looks for
            bugs += 1
            print(f"job {number} ({'; '.join(job.changes)}): {type(error).__name__}: {error}")
            continue
        why = f" ({end.reason})" if end.verdict in (Verdict.FAILED, Verdict.WAITING) else ""
        verdicts[f"{end.verdict}{why}"] += 1
        rounds.setdefault(f"{end.verdict}{why}", []).append(end.rounds)
    print("| what became of it | jobs | rounds (median, most) |\n|---|---|---|")
    for verdict, number in verdicts.most_common():
        print(f"| {verdict} | {number} | {median(rounds[verdict]):.0f}, {max(rounds[verdict])} |")
    print(f"| stopped the operator, or kept it busy | {bugs} | |")
    print(f"\n{time.perf_counter() - started:.0f} s")
    sys.exit(bool(bugs))


if __name__ == "__main__":
    main()
