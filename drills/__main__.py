"""`python -m drills [NAME...]`: does drills, each with its record, and says which have not held."""

import argparse
import shlex
import sys

from dlip.common.errors import UserError
from dlip.records.write import append
from drills import DRILLS, drill


def main(words: list[str]) -> int:
    about = "\n".join(f"  {name:9} {what}" for name, what in DRILLS.items())
    parser = argparse.ArgumentParser(
        "python -m drills", description=f"drills:\n{about}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="default: all")
    parser.add_argument(
        "--times", type=int, metavar="N", help="how many kills, disks, inputs, pictures, seconds or runs of the tests"
    )
    parser.add_argument("--results", metavar="PATH", help="where records go (default results/drills/NAME.jsonl)")
    args, broken = parser.parse_args(words), []
    options = {} if args.times is None else {"times": args.times}
    for name in args.names or DRILLS:
        try:
            record = drill(name, shlex.join(["python", "-m", "drills", *words]), **options)
        except UserError as mistake:
            print(mistake, file=sys.stderr)
            return 2
        append(record, args.results or f"results/drills/{name}.jsonl")
        print(f"{name}: {record['counts']} in {record['seconds']:,.0f} s")
        for fault in record["faults"]:
            print(f"  {fault}")
        broken += [name] * bool(record["faults"])
    print(f"not held: {', '.join(broken)}" if broken else "all have held")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
