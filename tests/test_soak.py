import re
import sys

import pytest
from processes import EXAMPLES, run_example

sys.path.insert(0, str(EXAMPLES))

import soak
from soak import Sample, growing


def test_a_few_hundred_tokens_leave_nothing_behind() -> None:
    result = run_example("soak.py", "--tokens", "360", "--request-tokens", "30")
    assert result.returncode == 0, result.stdout + result.stderr
    heading, *rows, last = result.stdout.splitlines()
    assert heading.split() == ["tokens", "active", "cache", "resident", "arrays"]
    assert [int(row.split()[0].replace(",", "")) for row in rows] == list(range(30, 361, 30))
    assert last == "360 tokens; nothing grows"


def test_a_cache_that_is_kept_is_found(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    kept, generate = [], soak.stream_generate

    def leak(model: object, *rest: object, **options: object) -> object:
        kept.extend(soak.mx.zeros((20_000,)) for _ in range(4))
        soak.mx.eval(kept)
        return generate(model, *rest, **options)  # pyright: ignore

    monkeypatch.setattr(soak, "stream_generate", leak)
    monkeypatch.setattr(sys, "argv", ["soak.py", "--tokens", "27", "--request-tokens", "3"])
    assert soak.main() == 1
    said = capsys.readouterr().err
    assert re.search(r"error: memory grows: active from [\d,]+ to [\d,]+.*arrays from", said)


def test_growth_is_judged_behind_the_warm_up() -> None:
    flat = [Sample(10**8, 10**7, 10**8, 50)] * 4
    rising = [Sample(10**6, 0, 10**7, 5)] * 2
    assert growing(rising + flat) == []
    spike, low = [Sample(10**9, 10**9, 10**9, 900)] * 2, [Sample(10**6, 0, 10**7, 5)] * 2
    assert len(growing(spike + low + flat[:2])) == 4
    assert growing(flat + [Sample(10**8 + 2 * 10**6, 10**7, 10**8, 50)] * 2) == [
        "active from 100,000,000 to 102,000,000"
    ]
    assert growing(flat + [Sample(10**8, 10**7, 10**8, 60)] * 2) == ["arrays from 50 to 60"]
    assert growing(flat + [Sample(10**8, 2 * 10**7, 2 * 10**8, 50)] * 2) == [
        "cache from 10,000,000 to 20,000,000",
        "resident from 100,000,000 to 200,000,000",
    ]


def test_too_few_samples_are_no_verdict(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["soak.py", "--tokens", "5"])
    assert soak.main() == 1
    assert "six are the least" in capsys.readouterr().err
