"""The command `dlip`, and `python -m dlip`."""

import sys


def main() -> int:
    """As `dlip.cli.main`, whose imports may be interrupted too."""
    try:
        from dlip.cli import main

        return main()
    except KeyboardInterrupt:
        print("dlip: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
