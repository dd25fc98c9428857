"""Progress of long work."""

import sys
from typing import Any

from tqdm import tqdm


def progress_bar(**options: Any) -> Any:
    """A progress bar (`tqdm`) on a terminal; elsewhere, as in a log file, one state every half minute."""
    waiting = 0 if sys.stderr.isatty() else 30
    return tqdm(mininterval=max(waiting, 0.2), delay=waiting, maxinterval=60, **options)
