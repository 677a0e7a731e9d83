"""An open, ML-driven customer data platform: from silos to served predictions."""

from importlib.metadata import version

from cdp_ml.errors import CdpError
from cdp_ml.refresh import refresh
from cdp_ml.workspace import Workspace
from cdp_ml.workspace import open_workspace as open  # noqa: A004 - `cdp_ml.open()` reads well

__version__ = version("cdp-ml")
__all__ = ["CdpError", "Workspace", "__version__", "open", "refresh"]
