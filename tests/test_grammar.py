"""Networks that nobody has thought of: exact, or refused, see `grammar`.

NETWORKS=5000 pytest -n 0 tests/test_grammar.py
"""

import os
from collections import Counter

import pytest
from judge import judge

NUMBER = int(os.environ.get("NETWORKS", 50))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_random_networks_are_exact_or_refused():
    verdicts = {seed: judge(seed) for seed in range(NUMBER)}
    wrong = {seed: verdict for seed, verdict in verdicts.items() if verdict.startswith("wrong")}
    assert not wrong
    assert Counter(verdicts.values())["exact"] >= NUMBER // 2, "most of them are not refused"
