"""The plugin of CONTRIBUTING.md works as printed there."""

import re
from pathlib import Path

from beaconry.latency.rates import RateBook
from beaconry.testing import check_policy

TEXT = (Path(__file__).resolve().parents[2] / "CONTRIBUTING.md").read_text()


def test_the_printed_policy_passes_the_contract_suite():
    (source,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert len([line for line in source.splitlines() if line.strip() and not line.startswith("#")]) <= 10
    names: dict[str, type] = {}
    exec(source, names)
    check_policy(names["EmptiestCache"](RateBook()))
