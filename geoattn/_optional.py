"""Imports of what is not required, with an error that says what to install."""

import importlib
from types import ModuleType

# What a wheel needs from the system and does not bring, by the Debian package that has it.
_DEBIAN = {
    "libusb-1.0.so.0": "libusb-1.0-0",
    "libGL.so.1": "libgl1",
    "libgomp.so.1": "libgomp1",
    "libEGL.so.1": "libegl1",
}


def require(module: str, extra: str) -> ModuleType:
    """Import ``module``, which the extra ``extra`` of geoattn installs.

    Raises:
        ImportError: If it is not installed (the message has the ``pip install`` line), or if a system
            library it needs is missing (the message has the Debian package).
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ImportError(f"{module} is not installed; install it with: pip install 'geoattn[{extra}]'") from error
    except (ImportError, OSError) as error:
        for library, package in _DEBIAN.items():
            if library in str(error):
                raise ImportError(
                    f"{module} needs the system library {library}; on Debian or Ubuntu: apt-get install {package}"
                ) from error
        raise
