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
    """A package on disk.

    Attributes:
        path: the file.
        revision: the first digits of its SHA-256: the same package is the same version.
        parameters: type of each parameter of a run, by name.
        steps: what people call each step, by the name of its task, which a backend may show in its
            place.
    """

    path: Path
    revision: str
    parameters: dict[str, str]
    steps: dict[str, str]

    @staticmethod
    def read(path: Path) -> Package:
        """Reads what submitting needs to know.

        Raises:
            UserError: there is no such file, or it is no package.
        """
        try:
            content = path.read_bytes()
            specification = next(yaml.safe_load_all(content))
            version = specification["schemaVersion"]
            declared = specification["root"].get("inputDefinitions", {}).get("parameters", {})
            types = {name: str(one["parameterType"]) for name, one in declared.items()}
            steps = dict(_steps(specification))
        except FileNotFoundError:
            raise UserError(
                f"There is no package {path}. Make it with `graftline kubeflow compile`."
            ) from None
        except OSError as error:
            raise UserError(f"The package {path} cannot be read: {error.strerror}.") from error
        except (yaml.YAMLError, UnicodeDecodeError, StopIteration) as error:
            raise UserError(f"{path} is no package: it is not YAML.") from error
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{path} is no package of Kubeflow Pipelines: it lacks {error}. Make it with "
                "`graftline kubeflow compile`."
            ) from error
        if version != _SCHEMA:
            raise UserError(
                f"The package {path} has schema {version}, but Kubeflow Pipelines takes {_SCHEMA} "
                "only. Make it anew with `graftline kubeflow compile`."
            )
        return Package(
            path=path,
            revision=hashlib.sha256(content).hexdigest()[:_DIGITS],
            parameters=types,
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
                    f"The package {self.path} has no parameter {name!r}; it has "
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


def _steps(specification: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The tasks that a container runs, of all branches, each with the name that people know."""
    components = specification.get("components", {})
    for component in (specification["root"], *components.values()):
        for key, task in component.get("dag", {}).get("tasks", {}).items():
            of = components.get(task["componentRef"]["name"], {})
            if "executorLabel" in of:
                yield key, str(task.get("taskInfo", {}).get("name", key))
