"""The GPU suite: ``python -m bench.gpu --out FOLDER`` checks and times every op on a GPU in one run.

Each section is a process of its own, so that an illegal access or a hang in one of them costs no other; they
run in order of importance until the time is spent, and what is there is written after each. ``--dry-run``
runs the same code on the CPU, with tiny sizes and Triton's interpreter. ``run.sh`` here builds the extension
from the source tree first.
"""
