"""What can go wrong because of what a person wrote or supplied.

Every message says what is wrong, where, what would have been valid, and what to do next. It never
holds personal data. The CLI prints it as one line and exits with 1; anything that is not a
`CdpError` is a defect of ours.
"""

from collections.abc import Iterable
from difflib import get_close_matches

MOST_NAMES = 20
"""How many names a message lists before it becomes unreadable."""


class CdpError(Exception):
    """Something that the user can mend."""


class ConfigError(CdpError):
    """cdp.yaml, a specification in models/ or a command-line value is wrong."""


class ContractError(CdpError):
    """Data does not have the columns, types or keys that its contract demands."""


class LinkageError(CdpError):
    """Records cannot be linked as specified."""


class LeakageError(CdpError):
    """A computation would have used facts from after its instant."""


class ConsentError(CdpError):
    """A use of personal data lacks the consent for its purpose."""


class NothingPublishedError(CdpError):
    """No refresh has published a run yet."""


class NotPromotedError(CdpError):
    """A model has no version that may be served."""


def nearest(name: str, valid: Iterable[str]) -> str:
    """Say which valid names come closest to `name`, for the end of an error message.

    Args:
        name: what was asked for.
        valid: what could have been asked for.

    Returns:
        "did you mean 'a' or 'b'?", or the list of valid names when none is close.
    """
    names = sorted(set(valid))
    close = get_close_matches(name, names, n=3, cutoff=0.6)
    if close:
        return "did you mean " + " or ".join(f"'{c}'" for c in close) + "?"
    shown, others = ", ".join(names[:MOST_NAMES]), len(names) - MOST_NAMES
    return f"valid names: {shown or 'none'}" + (f" and {others} more" if others > 0 else "")
