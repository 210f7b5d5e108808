"""Python imports this by itself where this folder is on its path: an engine then has the device that is named."""

import os
import sys
from importlib import import_module

if sys.orig_argv[-1] == "_engine":
    import_module(os.environ.get("CHAOS_DEVICE", "faulty_device")).inject()
