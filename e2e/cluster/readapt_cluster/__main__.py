"""`python -m readapt_cluster COMMAND`."""

import sys

from readapt_cluster.cli import main

sys.exit(main())
