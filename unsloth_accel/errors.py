"""The exceptions a user may catch.

UnslothAccelError
|-- ConfigurationError (also a ValueError)    an argument, environment value or machine that cannot work
|-- VersionError       (also an ImportError)  an installed package below its floor, or imported in the wrong order
|-- PeerError          (also a RuntimeError)  another rank failed; its own error is in the message
`-- GradientSyncError  (also a RuntimeError)  the ranks hold, or would get, different weights
"""


class UnslothAccelError(Exception):
    """Base class of every error that `unsloth_accel` raises on purpose."""


class ConfigurationError(UnslothAccelError, ValueError):
    """An argument, an environment value or a machine that cannot work together; raised before training starts."""


class VersionError(UnslothAccelError, ImportError):
    """An installed package is below the version that really runs, or was imported in an order that cannot work."""


class PeerError(UnslothAccelError, RuntimeError):
    """Raised on this rank because another rank failed. The message names that rank and carries what is known of it."""


class GradientSyncError(UnslothAccelError, RuntimeError):
    """The ranks hold different weights, or an optimizer was about to make them different."""
