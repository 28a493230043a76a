"""The dashboards: what each panel asks, in PromQL, and how it is to be read.

    job       one job: is it as fast as planned, does it fit, does it learn, what has happened to it
    fleet     all jobs: who runs, who waits, where the time of the GPUs goes
    operator  the operator itself: is it alive, does it keep up

What a pod says of its job reads the same in every pod: ``max``, never ``sum``. Series of a job end with its object, and
what ranks count begins again with every attempt, which ``rate`` and ``increase`` know how to read.
"""

from charts.boards.fleet import FLEET
from charts.boards.job import JOB
from charts.boards.operating import OPERATOR

BOARDS = (JOB, FLEET, OPERATOR)
