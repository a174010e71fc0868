"""Additions of people to pseudo labels: corrected masks, verdicts, and where to look first."""
