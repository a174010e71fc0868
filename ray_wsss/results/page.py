"""Pages whose tables are generated: prose by hand, tables between markers.

<!-- table NAME -->
...
<!-- end of table -->
"""

import re
from collections.abc import Mapping

_TABLE = re.compile(r"(<!-- table (\w+) -->\n)(.*?)(<!-- end of table -->)", re.DOTALL)


def names_of(page: str) -> list[str]:
    """Names of the tables of a page, in order."""
    return [found[2] for found in _TABLE.finditer(page)]


def with_tables(page: str, tables: Mapping[str, str]) -> str:
    """The page with new content between the markers of these tables; other tables stay as they are."""

    def replaced(found: re.Match[str]) -> str:
        table = tables.get(found[2])
        return found[0] if table is None else f"{found[1]}\n{table.strip()}\n\n{found[4]}"

    return _TABLE.sub(replaced, page)
