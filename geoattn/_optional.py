"""Imports of what layers and operators do not need, with an error that says what to install."""

import importlib
from typing import Any

# What a wheel needs from the system and does not bring, by the Debian package that has it.
_DEBIAN = {
    "libusb-1.0.so.0": "libusb-1.0-0",
    "libGL.so.1": "libgl1",
    "libgomp.so.1": "libgomp1",
    "libEGL.so.1": "libegl1",
}


# Where the name on the package index is not the module's with hyphens.
_PACKAGES = {"collada": "pycollada"}


def require(module: str, extra: str | None = None) -> Any:
    """Import ``module``, which geoattn or its extra ``extra`` installs.

    Raises:
        ImportError: If it, or something it imports, is not installed (the message has the ``pip install`` line), or if
            a system library it needs is missing (the message has the Debian package).
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = (error.name or module).partition(".")[0]
        package = f"'geoattn[{extra}]'" if extra else _PACKAGES.get(missing, missing.replace("_", "-"))
        raise ImportError(f"{missing} is not installed; install it with: pip install {package}") from error
    except (ImportError, OSError) as error:
        for library, package in _DEBIAN.items():
            if library in str(error):
                raise ImportError(
                    f"{module} needs the system library {library}; on Debian or Ubuntu: apt-get install {package}"
                ) from error
        raise
