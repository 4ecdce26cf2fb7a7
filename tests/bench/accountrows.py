"""The rows of the table that are about accounting: `du` is what the others call the floor. Pure."""

from __future__ import annotations

from statistics import median

from tests.bench.accounts import CHANGED, FILES_EACH, VOLUMES, Accounts
from tests.bench.embedded import Claims
from tests.bench.report import Row

SCRAPED = 10_000
USAGE_GOAL = 50.0  # times cheaper than du
SCRAPE_GOAL = 1.0  # seconds


def usage_rows(accounts: Accounts) -> list[Row]:
    ratios = [one.du / one.ours for one in accounts.rounds]
    middle = median(ratios)
    return [
        Row(
            f"usage of {VOLUMES:,} volumes, {VOLUMES * FILES_EACH:,} files, after {CHANGED} files changed: `du` of "
            "everything; ours from the directories that events named to the totals",
            f"{median(one.du for one in accounts.rounds):.2f} s",
            f"{median(one.ours for one in accounts.rounds) * 1000:.1f} ms",
            f"{middle:.0f} ({min(ratios):.0f} to {max(ratios):.0f}); a whole look took {accounts.whole:.1f} s",
            f"{USAGE_GOAL:g} times cheaper",
            middle >= USAGE_GOAL,
        )
    ]


def scrape_rows(found: Claims) -> list[Row]:
    scrape = found.scrape
    return [
        Row(
            f"scrape of {found.claims:,} volumes over HTTP, the controller on the embedded API server with a pair of "
            f"local directories: median of {len(scrape.seconds)}",
            "",
            f"{scrape.median * 1000:.0f} ms",
            f"{min(scrape.seconds) * 1000:.0f} to {max(scrape.seconds) * 1000:.0f} ms; {scrape.size / 1e6:.1f} MB, "
            f"{scrape.used:,} volumes with their usage",
            f"under {SCRAPE_GOAL:g} s",
            scrape.median < SCRAPE_GOAL,
        )
    ]
