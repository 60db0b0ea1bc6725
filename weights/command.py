"""What the commands of this folder do when they are used wrongly or stopped."""

import sys
from collections.abc import Callable


def command(work: Callable[[], None]) -> None:
    """Runs `work` and ends the program: a mistake is one line and status 2, Ctrl-C is status 130."""
    try:
        work()
    except (ValueError, OSError) as error:
        print(f"weights: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("weights: stopped", file=sys.stderr)
        sys.exit(130)
