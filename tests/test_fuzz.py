"""Files from others, mutated at random: see `fuzzing`, of which this is twenty seconds at most.

In a process of its own, because an audit hook cannot be taken out again.
"""

import os
import subprocess
import sys

import pytest
from conftest import ROOT

MUTATIONS, SECONDS = 100, 20


@pytest.mark.slow
def test_mutated_files():
    program = (
        "from fuzzing import fuzz\n"
        f"counts, wrong = fuzz({MUTATIONS}, seed=1, seconds={SECONDS})\n"
        "kinds = {key.split(':')[0] for key in counts}\n"
        "assert len(kinds) == 5 and sum(counts.values()) >= 25, counts\n"
        "assert any('refused' in key for key in counts) and any('read' in key for key in counts)\n"
        "assert not wrong, wrong\n"
    )
    paths = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
    environment = {**os.environ, "PYTHONPATH": paths}
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], env=environment, capture_output=True
    )
    assert result.returncode == 0, result.stdout.decode() + result.stderr.decode()


@pytest.mark.slow
def test_the_watch_sees_what_is_forbidden(tmp_path):
    """Else nothing seen would prove nothing."""
    program = (
        "import os, socket, sys\n"
        "from pathlib import Path\n"
        "from fuzzing import Watch\n"
        "watch = Watch(Path(sys.argv[1]) / 'inside')\n"
        "watch.on = True\n"
        "Path(sys.argv[1], 'outside').write_text('x')\n"
        "open('/etc/passwd').close()\n"
        "socket.socket().bind(('127.0.0.1', 0))\n"
        "os.system('true')\n"
        "watch.on = False\n"
        "assert [seen.split()[0] for seen in watch.seen] == "
        "['open', 'open', 'socket.bind', 'os.system'], watch.seen\n"
    )
    paths = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
    command = [sys.executable, "-c", program, str(tmp_path)]
    result = subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, capture_output=True)
    assert result.returncode == 0, result.stderr.decode()
