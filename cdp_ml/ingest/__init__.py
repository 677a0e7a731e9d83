"""Sources to the lake: files and databases (batch)."""
