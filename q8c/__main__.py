"""`python -m q8c`: the command line, where the script `q8c` is not on the path."""
from __future__ import annotations

import sys

from q8c.cli.main import main

sys.exit(main())
