"""The suite's strict settings and plugins that are none of its business."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_a_foreign_plugin_that_warns_does_not_fail_the_suite_and_a_test_that_warns_fails(tmp_path: Path) -> None:
    (tmp_path / "foreign.py").write_text(
        "import warnings, pytest\n"
        "class ForeignWarning(pytest.PytestWarning): pass\n"
        "def pytest_configure(config): warnings.warn('switched off', ForeignWarning)\n"
        "def pytest_collection_modifyitems(config): warnings.warn('again', ForeignWarning)\n"
    )
    (tmp_path / "test_here.py").write_text(
        "import warnings\ndef test_passes(): pass\ndef test_fails(): warnings.warn('a fault')\n"
    )
    words = ["-c", str(ROOT / "pyproject.toml"), "--rootdir", str(tmp_path), "-p", "foreign", "-q", str(tmp_path)]
    path = os.pathsep.join([str(tmp_path), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *words],
        capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}, check=False, timeout=200,
    )  # fmt: skip
    assert "1 failed, 1 passed" in done.stdout, done.stdout + done.stderr
    assert "UserWarning: a fault" in done.stdout


def test_a_checkout_without_metadata_can_be_imported(tmp_path: Path) -> None:
    script = (
        "import importlib.metadata as m\n"
        "found = m.version\n"
        "def version(name):\n"
        "    if name == 'optcam_pl': raise m.PackageNotFoundError(name)\n"
        "    return found(name)\n"
        "m.version = version\n"
        "import optcam_pl, optcam_pl.cli\n"
        "print(optcam_pl.__version__)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "0+unknown"
