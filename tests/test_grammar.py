"""Networks that nobody has thought of: exact, or refused, see `grammar`.

NETWORKS=5000 pytest -n 0 tests/test_grammar.py
"""

import os
from collections import Counter

import pytest
from judge import SHARES, judge

NUMBER = int(os.environ.get("NETWORKS", 40))
PARTS = 4  # for two processes


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("part", range(PARTS))
def test_random_networks_are_exact_or_refused(part):
    seeds = range(part, NUMBER, PARTS)  # each network is cut once, to one of the shares
    verdicts = {seed: judge(seed, (SHARES[seed // PARTS % 2],)) for seed in seeds}
    wrong = {seed: verdict for seed, verdict in verdicts.items() if verdict.startswith("wrong")}
    assert not wrong
    exact = Counter(verdicts.values())["exact"]
    assert exact >= len(verdicts) // 2, "most of them are not refused"
