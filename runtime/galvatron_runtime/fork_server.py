"""Imported first by the fork server of ``launch.py``, and by nothing else: the server ends with its agent.

The one of multiprocessing outlives whoever started it for as long as any of its children runs, and the ranks end only
with the server.
"""

from galvatron_runtime.processes import die_with_parent

die_with_parent()
