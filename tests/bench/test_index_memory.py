"""The index's bytes per entry: measured in a process of its own, as the command does."""

import re
import subprocess
import sys


def test_says_what_an_entry_takes() -> None:
    command = [sys.executable, "-m", "bench.index_memory", "--entries", "300000"]
    done = subprocess.run([*command, "--endpoints", "4"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = re.search(r"300,000 entries at 4 endpoints: ([\d.]+) bytes", done.stdout)
    assert found is not None
    assert 16 < float(found[1]) < 200


def test_nonsense_is_refused() -> None:
    command = [sys.executable, "-m", "bench.index_memory", "--endpoints", "0"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "1 to 1024 endpoints" in done.stderr
