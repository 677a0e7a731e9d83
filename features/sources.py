"""Where features come from: the lake's tables, and what is pushed between refreshes.

A path is the table's name: where the lake is and which version is read, the offline store knows.
"""

from feast import FileSource, PushSource

from cdp_ml.contracts import contract
from cdp_ml.traits import Group


def source(group: Group) -> PushSource:
    """The table of a group of traits, behind a source that `store.push` names."""
    table = contract(f"traits_{group}")
    batch = FileSource(
        name=f"{table.name}_source",
        path=table.name,
        timestamp_field="event_timestamp",
        description=table.row,
    )
    return PushSource(
        name=f"{table.name}_push",
        batch_source=batch,
        description=f"{table.row}, as it changes between refreshes",
    )


transactional_source = source("transactional")
behavioral_source = source("behavioral")
profile_source = source("profile")
