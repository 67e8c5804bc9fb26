"""Our server beside those that a user would pick instead: one full network per task in each of them.

`README.md` says how to run it. Where to look:

what is served     tasks.py (a store, and each of its tasks as a network of its own)
who serves it      servers.py; contenders/ (their programs, which know nothing of this project)
how it is asked    load.py
how it is measured runs.py memory.py
what comes out     tables.py figures.py
"""
