"""What an installation decides for all its jobs; refused at start when it is wrong."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from galvatron_planner.errors import InvalidInput

RUNTIME_IMAGE_VARIABLE = "GALVATRON_RUNTIME_IMAGE"
PULL_SECRETS_VARIABLE = "GALVATRON_IMAGE_PULL_SECRETS"
WATCH_NAMESPACES_VARIABLE = "GALVATRON_WATCH_NAMESPACES"
LOG_LEVEL_VARIABLE = "GALVATRON_LOG_LEVEL"
PROFILE_CACHE_VARIABLE = "GALVATRON_PROFILE_CACHE_NAMESPACE"
CONTRIBUTORS_VARIABLE = "GALVATRON_PROFILE_CACHE_CONTRIBUTORS"

LEADER_ELECTION_VARIABLE = "GALVATRON_LEADER_ELECTION"
LEASE_NAME_VARIABLE = "GALVATRON_LEASE_NAME"
POD_NAMESPACE_VARIABLE = "POD_NAMESPACE"
POD_NAME_VARIABLE = "POD_NAME"

_OBJECT_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")
LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")


@dataclass(frozen=True, slots=True)
class Candidacy:
    """How the operator takes part in the election of a leader.

    Attributes:
        namespace: of the operator, and of the Lease.
        lease_name: of the Lease.
        pod_name: of this operator, for people who look at the Lease.

    Raises:
        InvalidInput: when one of them is missing.
    """

    namespace: str
    lease_name: str
    pod_name: str

    def __post_init__(self) -> None:
        values = {
            POD_NAMESPACE_VARIABLE: self.namespace,
            LEASE_NAME_VARIABLE: self.lease_name,
            POD_NAME_VARIABLE: self.pod_name,
        }
        missing = [variable for variable, value in values.items() if not value]
        if missing:
            raise InvalidInput(
                f"{LEADER_ELECTION_VARIABLE} is true, and {', '.join(missing)} is not set",
                remedy="set it as the chart does, or turn the election off for an operator that is the only one",
            )


@dataclass(frozen=True, slots=True)
class ProfileCache:
    """Profiles that namespaces share: kept in one namespace, in which only the operator need have rights.

    Attributes:
        namespace: where they are kept.
        contributors: namespaces whose measurements are put there; empty for all.
    """

    namespace: str
    contributors: tuple[str, ...] = ()

    def takes_from(self, namespace: str) -> bool:
        """Tell whether what is measured in a namespace is for others as well."""
        return not self.contributors or namespace in self.contributors


@dataclass(frozen=True, slots=True)
class Settings:
    """The operator's settings.

    Attributes:
        runtime_image: image of profiling and training pods whose job names none.
        image_pull_secrets: of all jobs' pods beside those that a job names; each namespace has its own of these names.
        watch_namespaces: namespaces whose jobs are seen; empty for all.
        log_level: of the operator's log.
        candidacy: for the election of a leader; None where this operator is the only one.
        profile_cache: of profiles that namespaces share; None where each has its own.

    Raises:
        InvalidInput: when a value cannot be meant.
    """

    runtime_image: str
    image_pull_secrets: tuple[str, ...] = ()
    watch_namespaces: tuple[str, ...] = ()
    log_level: str = "INFO"
    candidacy: Candidacy | None = None
    profile_cache: ProfileCache | None = None

    def __post_init__(self) -> None:
        if not self.runtime_image:
            raise InvalidInput(
                f"{RUNTIME_IMAGE_VARIABLE} is not set",
                remedy="set it to the image of profiling and training pods (chart value runtime.image)",
            )
        for name in self.image_pull_secrets:
            if not _OBJECT_NAME.fullmatch(name):
                raise InvalidInput(
                    f"{PULL_SECRETS_VARIABLE} has {name!r}", remedy="use names of Secrets, separated by commas"
                )
        if self.log_level not in LOG_LEVELS:
            raise InvalidInput(
                f"{LOG_LEVEL_VARIABLE} is {self.log_level!r}", remedy=f"use one of {', '.join(LOG_LEVELS)}"
            )

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Self:
        """Read the settings from environment variables, given as a mapping.

        Raises:
            InvalidInput: naming the variable.
        """
        return cls(
            runtime_image=environment.get(RUNTIME_IMAGE_VARIABLE, "").strip(),
            image_pull_secrets=_listed(environment, PULL_SECRETS_VARIABLE),
            watch_namespaces=_listed(environment, WATCH_NAMESPACES_VARIABLE),
            log_level=environment.get(LOG_LEVEL_VARIABLE, "INFO").upper(),
            candidacy=_candidacy(environment),
            profile_cache=_profile_cache(environment),
        )


def _listed(environment: Mapping[str, str], variable: str) -> tuple[str, ...]:
    return tuple(sorted({name.strip() for name in environment.get(variable, "").split(",")} - {""}))


def _profile_cache(environment: Mapping[str, str]) -> ProfileCache | None:
    namespace = environment.get(PROFILE_CACHE_VARIABLE, "").strip()
    return ProfileCache(namespace, _listed(environment, CONTRIBUTORS_VARIABLE)) if namespace else None


def _candidacy(environment: Mapping[str, str]) -> Candidacy | None:
    wanted = environment.get(LEADER_ELECTION_VARIABLE, "false")
    if wanted not in ("true", "false"):
        raise InvalidInput(f"{LEADER_ELECTION_VARIABLE} is {wanted!r}", remedy="use true or false")
    if wanted == "false":
        return None
    return Candidacy(
        namespace=environment.get(POD_NAMESPACE_VARIABLE, ""),
        lease_name=environment.get(LEASE_NAME_VARIABLE, ""),
        pod_name=environment.get(POD_NAME_VARIABLE, ""),
    )
