"""An open, ML-driven customer data platform: from silos to served predictions."""

from cdp_ml.errors import CdpError

__version__ = "0.1.0"
__all__ = ["CdpError", "__version__"]
