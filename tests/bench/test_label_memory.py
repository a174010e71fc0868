"""Memory of labelling does not grow with the size of a photograph times its classes."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(("case", "most_mib"), [("photo", 800), ("classes", 1000)])
def test_labelling_stays_within_its_budget(case, most_mib):
    """All masks of the photo took 8.4 GiB at once, the CAMs and scores of 80 classes 1.4 GiB."""
    script = Path(__file__).with_name("measure_label_memory.py")
    run = subprocess.run(
        [sys.executable, "-W", "ignore", str(script), case], capture_output=True, text=True, check=True
    )
    print(run.stdout)
    assert float(run.stdout.split()[-3]) < most_mib
