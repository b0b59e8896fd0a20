"""A worker of `nora-trials` that starts at once and whose trials take a fifth of a second."""

import json
import sys
import time
from pathlib import Path

RESULT = {"outcome": "partial", "reached": True, "distractor_grasps": 0, "chunks": 1}

if __name__ == "__main__":
    assert json.loads(sys.stdin.readline())["seconds"] > 0
    for line in sys.stdin:
        if not Path(json.loads(line)["folder"], "model.safetensors").is_file():
            sys.exit("error: no weights")
        time.sleep(0.2)
        sys.stdout.write(json.dumps({**RESULT, "duration_s": 0.2}) + "\n")
        sys.stdout.flush()
