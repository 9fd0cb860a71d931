"""These tests run recorded networks, with kernels in the interpreter.

tests/engines/test_trtllm_network.py records them and runs this folder in a process of its own with
TRITON_INTERPRET=1; without that it is empty.
"""

import os

if "DYCOKE_TEST_NETWORK" not in os.environ:
    collect_ignore_glob = ["test_*.py"]
