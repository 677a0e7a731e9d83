"""The journal of a refresh: what its steps were made from, and which versions they wrote.

It is replaced atomically after each step; an interrupted refresh goes on from what it says.
"""

from __future__ import annotations

import json
import logging
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)


@dataclass
class Journal:
    """What the steps have done so far, on disk after each of them."""

    path: Path
    run: dict[str, str] = field(default_factory=dict)
    versions: dict[str, int] = field(default_factory=dict)
    steps: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path, published: dict[str, int]) -> Journal:
        """Read the journal; without a readable one, start from the published versions."""
        if path.is_file():
            try:
                return cls(path, **json.loads(path.read_text(encoding="utf-8")))
            except (TypeError, ValueError):
                log.warning("%s is damaged: every step runs again", path)
        return cls(path, versions=published)

    def save(self) -> None:
        """Write the journal in one atomic replacement."""
        content = {"run": self.run, "versions": self.versions, "steps": self.steps}
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps(content, indent=1, sort_keys=True), encoding="utf-8")
        os.replace(partial, self.path)
