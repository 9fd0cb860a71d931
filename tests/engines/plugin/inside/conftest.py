"""These tests load the compiled plugin beside a fake driver and run kernels in the interpreter.

tests/engines/plugin/test_plugin.py builds what they need and runs this folder in a process of its
own; without that it is empty.
"""

import os

if "DYCOKE_TEST_PLUGIN" not in os.environ:
    collect_ignore_glob = ["test_*.py"]
