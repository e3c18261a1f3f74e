"""The GPU suite: ``python -m bench.gpu --out FOLDER`` builds, checks and times every op on a GPU in one run.

Each section is a process of its own, or several, so that an illegal access or a hang in one of them costs no
other; they run in order of importance until the time is spent, and what is there is written after each. The
goals, beside what was reached, come last. ``--dry-run`` runs the same code on the CPU, with tiny sizes and
Triton's interpreter, and builds nothing.
"""
