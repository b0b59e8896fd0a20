"""Print this Python's own path if the workspace can be set up with it; otherwise say why not."""

import ensurepip  # noqa: F401  (Debian splits it off)
import sys
import sysconfig
import venv  # noqa: F401
from pathlib import Path

if sys.version_info[:2] not in ((3, 11), (3, 12)):
    sys.exit(f"expected Python 3.11 or 3.12, got {sys.version}")
header = Path(sysconfig.get_path("include"), "Python.h")
if not header.exists():
    sys.exit(f"{header} is missing: install python3-dev")
print(Path(sys.executable).resolve())  # not the link of an environment
