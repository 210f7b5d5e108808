"""Python imports this by itself where this folder is on its path: in an engine's process the device has faults then."""

import sys

if sys.orig_argv[-1] == "_engine":
    from faulty_device import inject

    inject()
