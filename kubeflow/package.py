"""A compiled package as it is submitted: its digest, and the parameters that its runs take."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import yaml

from graftline.serving.errors import UserError

# Names of the types in the package, and what a value of them is in Python.
_TYPES: dict[str, tuple[type, ...]] = {
    "STRING": (str,),
    "NUMBER_INTEGER": (int,),
    "NUMBER_DOUBLE": (int, float),
    "BOOLEAN": (bool,),
    "LIST": (list,),
    "STRUCT": (dict,),
}
_SCHEMA = "2.1.0"
_DIGITS = 12


class Package(msgspec.Struct, frozen=True, kw_only=True):
    """A package: a file, or a version that was uploaded before.

    Attributes:
        name: what people call it: the file, or the version.
        path: the file; None for a version.
        version_id: of the version; empty for a file.
        revision: the first digits of the file's SHA-256: the same package is the same version.
        parameters: type of each parameter of a run, by name.
        steps: what people call each step, by the name of its task, which a backend may show in its
            place.
    """

    name: str
    path: Path | None = None
    version_id: str = ""
    revision: str
    parameters: dict[str, str]
    steps: dict[str, str]

    @staticmethod
    def read(path: Path) -> Package:
        """Reads what submitting needs to know of a file.

        Raises:
            UserError: there is no such file, or it is no package.
        """
        try:
            content = path.read_bytes()
            specification = next(yaml.safe_load_all(content))
        except FileNotFoundError:
            raise UserError(
                f"There is no package {path}. Make it with `graftline kubeflow compile`."
            ) from None
        except OSError as error:
            raise UserError(f"The package {path} cannot be read: {error.strerror}.") from error
        except (yaml.YAMLError, UnicodeDecodeError, StopIteration) as error:
            raise UserError(f"{path} is no package: it is not YAML.") from error
        parameters, steps = _understand(specification, str(path))
        return Package(
            name=str(path),
            path=path,
            revision=hashlib.sha256(content).hexdigest()[:_DIGITS],
            parameters=parameters,
            steps=steps,
        )

    @staticmethod
    def uploaded(version_id: str, name: str, specification: Mapping[str, Any]) -> Package:
        """A version that was uploaded before.

        Args:
            version_id: its id.
            name: its name.
            specification: what the API tells of it: the package's first document, or both.

        Raises:
            UserError: it is no package of ours.
        """
        parameters, steps = _understand(
            specification.get("pipeline_spec", specification), f"The version {name}"
        )
        return Package(
            name=f"the version {name}",
            version_id=version_id,
            revision=name.partition("-")[0],
            parameters=parameters,
            steps=steps,
        )

    def check(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """The parameters of a run, where the package takes them.

        Raises:
            UserError: one is unknown, or of another type.
        """
        for name, value in parameters.items():
            if name not in self.parameters:
                raise UserError(
                    f"{self.name} has no parameter {name!r}; it has "
                    f"{', '.join(sorted(self.parameters)) or 'none'}. If it was made by another "
                    "version, make it anew with `graftline kubeflow compile`."
                )
            wanted = self.parameters[name]
            allowed = _TYPES.get(wanted, (object,))
            if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
                raise UserError(
                    f"The parameter {name} must be of type {wanted}, found {value!r} "
                    f"({type(value).__name__})."
                )
        return dict(parameters)


def _understand(specification: Any, name: str) -> tuple[dict[str, str], dict[str, str]]:
    """Types of the parameters, and names of the steps.

    Raises:
        UserError: it is no package, or one of another schema.
    """
    try:
        version = specification["schemaVersion"]
        declared = specification["root"].get("inputDefinitions", {}).get("parameters", {})
        types = {key: str(one["parameterType"]) for key, one in declared.items()}
        steps = dict(_steps(specification))
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{name} is no package of Kubeflow Pipelines: it lacks {error}. Make it with "
            "`graftline kubeflow compile`."
        ) from error
    if version != _SCHEMA:
        raise UserError(
            f"{name} has schema {version}, but Kubeflow Pipelines takes {_SCHEMA} only. Make it "
            "anew with `graftline kubeflow compile`."
        )
    return types, steps


def _steps(specification: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The tasks that a container runs, of all branches, each with the name that people know."""
    components = specification.get("components", {})
    for component in (specification["root"], *components.values()):
        for key, task in component.get("dag", {}).get("tasks", {}).items():
            of = components.get(task["componentRef"]["name"], {})
            if "executorLabel" in of:
                yield key, str(task.get("taskInfo", {}).get("name", key))
