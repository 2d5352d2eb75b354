"""`python -m drills [NAME...]`: runs drills, appends their records and lists those that failed."""

import argparse
import shlex
import sys

from dlip.common.errors import UserError
from dlip.records.write import append
from drills import DRILLS, run_drill


def main(words: list[str]) -> int:
    about = "\n".join(f"  {name:9} {what}" for name, what in DRILLS.items())
    parser = argparse.ArgumentParser(
        "python -m drills", description=f"drills:\n{about}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="drills to run (default: all)")
    times = "number of kills, disks, inputs, images, seconds or test runs (default: the drill's own)"
    parser.add_argument("--times", type=int, metavar="N", help=times)
    parser.add_argument("--results", metavar="PATH", help="file of the records (default: results/drills/NAME.jsonl)")
    args, failed = parser.parse_args(words), []
    options = {} if args.times is None else {"times": args.times}
    for name in args.names or DRILLS:
        try:
            record = run_drill(name, shlex.join(["python", "-m", "drills", *words]), **options)
        except UserError as error:
            print(error, file=sys.stderr)
            return 2
        append(record, args.results or f"results/drills/{name}.jsonl")
        print(f"{name}: {record['counts']} in {record['seconds']:,.0f} s", *record["faults"], sep="\n  ")
        failed += [name] * bool(record["faults"])
    print(f"failed: {', '.join(failed)}" if failed else "all passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
