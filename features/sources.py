"""The lake's tables that features are read from.

A path is the table's name: where the lake is and which version is read, the offline store knows.
"""

from feast import FileSource

from cdp_ml.contracts import contract
from cdp_ml.traits import Group


def source(group: Group) -> FileSource:
    """The table of a group of traits."""
    table = contract(f"traits_{group}")
    return FileSource(
        name=f"{table.name}_source",
        path=table.name,
        timestamp_field="event_timestamp",
        description=table.row,
    )


transactional_source = source("transactional")
behavioral_source = source("behavioral")
profile_source = source("profile")
