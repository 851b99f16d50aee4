"""The sidecar: it acts on what `steer_policies` decides.

`__version__` is looked up when first asked for: reading a distribution's metadata costs more than
importing this package.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    __version__: str
else:

    def __getattr__(name: str) -> str:
        if name != "__version__":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import metadata

        try:
            version = metadata.version("steer-llm")
        except metadata.PackageNotFoundError:  # a checkout on the path, not installed
            version = "0+unknown"
        globals()["__version__"] = version
        return version
