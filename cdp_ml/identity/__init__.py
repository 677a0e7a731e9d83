"""Records to customers: linkage, the crosswalk, and how good they are."""
