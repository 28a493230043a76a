"""Why attempts of a job fail, as ``status.failures`` says and rules of ``spec.failurePolicy`` name it."""

from enum import StrEnum


class FailureReason(StrEnum):
    """Why an attempt failed; every class that a supervisor gives its own command is among them under the same name."""

    USER_ERROR = "UserError"
    DATA_ERROR = "DataError"
    BAD_PLAN = "BadPlan"
    OUT_OF_DEVICE_MEMORY = "CudaOutOfMemory"
    COMMUNICATION = "CommunicationError"
    PREEMPTED = "Preempted"
    UNKNOWN = "Unknown"
    OUT_OF_HOST_MEMORY = "HostOutOfMemory"
    EVICTED = "Evicted"
    NODE_LOST = "NodeLost"
    POD_LOST = "PodLost"
    SUPERVISOR_EXITED = "SupervisorExited"
    STALLED = "Stalled"
    GANG_INCOMPLETE = "GangIncomplete"
