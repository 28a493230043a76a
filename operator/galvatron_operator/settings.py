"""What an installation decides for all its jobs; refused at start when it is wrong."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from galvatron_planner.errors import InvalidInput

RUNTIME_IMAGE_VARIABLE = "GALVATRON_RUNTIME_IMAGE"
WATCH_NAMESPACES_VARIABLE = "GALVATRON_WATCH_NAMESPACES"
LOG_LEVEL_VARIABLE = "GALVATRON_LOG_LEVEL"

LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")


@dataclass(frozen=True, slots=True)
class Settings:
    """The operator's settings.

    Attributes:
        runtime_image: image of profiling and training pods whose job names none.
        watch_namespaces: namespaces whose jobs are seen; empty for all.
        log_level: of the operator's log.

    Raises:
        InvalidInput: when a value cannot be meant.
    """

    runtime_image: str
    watch_namespaces: tuple[str, ...] = ()
    log_level: str = "INFO"

    def __post_init__(self) -> None:
        if not self.runtime_image:
            raise InvalidInput(
                f"{RUNTIME_IMAGE_VARIABLE} is not set",
                remedy="set it to the image of profiling and training pods (chart value runtime.image)",
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
        namespaces = environment.get(WATCH_NAMESPACES_VARIABLE, "").split(",")
        return cls(
            runtime_image=environment.get(RUNTIME_IMAGE_VARIABLE, "").strip(),
            watch_namespaces=tuple(sorted({name.strip() for name in namespaces} - {""})),
            log_level=environment.get(LOG_LEVEL_VARIABLE, "INFO").upper(),
        )
