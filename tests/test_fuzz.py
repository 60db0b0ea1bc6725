"""A slice of tests/fuzz.py: damaged files of every kind are refused in one line, or load."""

from tests.fuzz import fuzz


def test_damaged_files_give_one_line_each():
    outcomes, failures = fuzz(96, seed=1)
    assert failures == []
    refused = sum(count for (_, outcome), count in outcomes.items() if outcome == "refused")
    assert refused > 48, "most damage must be noticed"
    assert len({name for name, outcome in outcomes if outcome == "refused"}) == 16, "of every kind of file"
