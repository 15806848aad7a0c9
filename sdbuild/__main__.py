"""`python -m sdbuild`."""

import sys

from sdbuild.cli import main

if __name__ == "__main__":
    sys.exit(main())
