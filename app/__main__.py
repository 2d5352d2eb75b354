"""`python -m app`: the same as `dlip app`."""

import sys

from dlip.cli import main

if __name__ == "__main__":
    sys.exit(main(["app", *sys.argv[1:]]))
