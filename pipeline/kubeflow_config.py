"""What a user can set about a cluster: the section `kubeflow`.

Read by `graftline kubeflow`, which makes the package, and by its steps, which run on the cluster.
No password stands here: secrets are named, and reach the steps as environment variables.
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

# Names of Kubernetes objects: DNS labels and subdomains.
_Name = Annotated[str, Meta(pattern=r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$", max_length=253)]
# A name, with the domain of whoever gave it in front.
_Annotation = Annotated[
    str, Meta(pattern=r"^([a-z0-9][a-z0-9.-]*/)?[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$")
]
_Variable = Annotated[str, Meta(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
# `500m`, `2`, `1.5`; `512Mi`, `8G`.
_Cpu = Annotated[str, Meta(pattern=r"^[0-9]+(\.[0-9]+)?m?$")]
_Memory = Annotated[str, Meta(pattern=r"^[0-9]+(\.[0-9]+)?(K|Ki|M|Mi|G|Gi|T|Ti)?$")]

USER_VARIABLE = "GRAFTLINE_METADATA_USER"
TOKEN_VARIABLE = "GRAFTLINE_KUBEFLOW_TOKEN"
PASSWORD_VARIABLE = "GRAFTLINE_METADATA_PASSWORD"


class VolumeConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A volume that every step mounts."""

    claim: Annotated[_Name, Meta(description="Its PersistentVolumeClaim (ReadWriteMany).")]
    path: Annotated[str, Meta(pattern=r"^/.", description="Where the steps find it.")]


class SecretConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A secret whose values every step has as environment variables."""

    name: Annotated[_Name, Meta(description="The Secret.")]
    env: Annotated[
        dict[_Variable, str], Meta(description="Which variable holds the value of which key.")
    ]


class TolerationConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A taint of nodes that a step may run on all the same."""

    key: Annotated[str, Meta(description="The taint's key.")]
    operator: Annotated[Literal["Exists", "Equal"], Meta(description="Exists or Equal.")] = "Exists"
    value: Annotated[str, Meta(description="Of the taint, with Equal.")] = ""
    effect: Annotated[
        Literal["", "NoSchedule", "PreferNoSchedule", "NoExecute"],
        Meta(description="Of the taint; empty: any."),
    ] = ""


class StepConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a step gets; null: as in kubeflow.defaults, and there nothing in particular."""

    cpu: Annotated[
        _Cpu | None, Meta(description="Processors that are reserved for it, e.g. 2 or 500m.")
    ] = None
    cpu_limit: Annotated[_Cpu | None, Meta(description="Processors it uses at most.")] = None
    memory: Annotated[
        _Memory | None,
        Meta(description="Memory that is reserved for it and that it uses at most, e.g. 8G."),
    ] = None
    accelerator: Annotated[
        str | None, Meta(description="Kind of its accelerators, e.g. nvidia.com/gpu.")
    ] = None
    accelerators: Annotated[
        Annotated[int, Meta(ge=0, le=16)] | None, Meta(description="How many of them.")
    ] = None
    node_selector: Annotated[
        dict[str, str] | None, Meta(description="Labels of the nodes that it may run on.")
    ] = None
    annotations: Annotated[
        dict[_Annotation, str] | None,
        Meta(description='Of its pod, e.g. {"gke-gcsfuse/volumes": "true"}.'),
    ] = None
    tolerations: Annotated[
        tuple[TolerationConfig, ...] | None,
        Meta(description="Taints of nodes that it may run on all the same."),
    ] = None
    retries: Annotated[
        Annotated[int, Meta(ge=0, le=20)] | None,
        Meta(description="How often it is tried again where it fails; a gate's no is no failure."),
    ] = None
    retry_seconds: Annotated[
        Annotated[int, Meta(ge=1, le=3600)] | None,
        Meta(description="How long it waits before the first retry; then twice as long each."),
    ] = None
    timeout_minutes: Annotated[
        Annotated[int, Meta(ge=1, le=60 * 24 * 30)] | None,
        Meta(description="After which time a try of it is ended as failed."),
    ] = None


class MetadataConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The metadata database of runs on a cluster: MySQL 8 or MariaDB; without a host SQLite."""

    host: Annotated[
        str,
        Meta(
            pattern=r"^[A-Za-z0-9._:-]*$",
            description="Its host. Empty: a SQLite file among the artifacts, for a volume of one "
            "machine only.",
        ),
    ] = ""
    port: Annotated[int, Meta(ge=1, le=65535, description="Its TCP port.")] = 3306
    database: Annotated[
        str,
        Meta(
            pattern=r"^[A-Za-z0-9_]{1,64}$",
            description="Name of the database there, a project's own; it is made if need be.",
        ),
    ] = "graftline"
    secret: Annotated[
        str,
        Meta(
            pattern=r"^([a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?)?$",
            description="Secret with the keys username and password, which the steps get as "
            f"{USER_VARIABLE} and {PASSWORD_VARIABLE}.",
        ),
    ] = "graftline-metadata"


class ApiConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where Kubeflow Pipelines is asked: for `submit`, `schedule` and `status`."""

    address: Annotated[
        str,
        Meta(
            pattern=r"^(https?://[^\s?#]+)?$",
            description="Address of the API: https://HOST, with the path that a gateway in front "
            "of it adds, such as /pipeline. Empty: the environment variable KF_PIPELINES_ENDPOINT.",
        ),
    ] = ""
    page: Annotated[
        str,
        Meta(
            pattern=r"^(https?://[^\s?#]+)?$",
            description="Address of its web page, for links to runs; empty: that of the API.",
        ),
    ] = ""
    token_file: Annotated[
        str,
        Meta(
            description="File with the bearer token, read anew at every request. Empty: the "
            f"environment variable {TOKEN_VARIABLE}; in a pod the token that is mounted for "
            "Kubeflow Pipelines."
        ),
    ] = ""
    ca_file: Annotated[
        str,
        Meta(
            description="PEM file of the authority that signed its certificate; empty: public ones."
        ),
    ] = ""
    namespace: Annotated[
        str,
        Meta(
            pattern=r"^([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)?$",
            description="Whose runs they are, where Kubeflow has several users; else empty.",
        ),
    ] = ""
    experiment: Annotated[str, Meta(description="Groups the runs; empty: the model's name.")] = ""
    service_account: Annotated[
        str, Meta(description="As which the steps run; empty: the cluster's default.")
    ] = ""

    def run_page(self, run_id: str) -> str:
        """Address of a run's page for people; empty where only pods of the cluster know it."""
        inside = not self.page and self.address.startswith("http:")
        base = (self.page or self.address).rstrip("/")
        return f"{base}/#/runs/details/{run_id}" if base and not inside else ""


class KubeflowConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Runs on Kubeflow Pipelines: where the steps run and what they get."""

    image: Annotated[
        str,
        Meta(
            pattern=r"^\S*$",
            description="Image of the steps, with a tag or digest of its own for every version of "
            "the code.",
        ),
    ] = ""
    image_pull_secrets: Annotated[
        tuple[_Name, ...], Meta(description="Secrets that the image is fetched with.")
    ] = ()
    project: Annotated[
        str,
        Meta(pattern=r"^/.", description="The project's folder on a volume, as the steps see it."),
    ] = "/graftline/project"
    volumes: Annotated[
        tuple[VolumeConfig, ...], Meta(description="Volumes that every step mounts.")
    ] = (VolumeConfig(claim="graftline", path="/graftline"),)
    secrets: Annotated[
        tuple[SecretConfig, ...],
        Meta(description="Secrets whose values every step has as environment variables."),
    ] = ()
    metadata: MetadataConfig = MetadataConfig()
    api: ApiConfig = ApiConfig()
    lease_minutes: Annotated[
        int,
        Meta(
            ge=5,
            le=60 * 24 * 7,
            description="After how long without a sign of life a run counts as dead, and another "
            "may begin: longer than a step waits for a node.",
        ),
    ] = 120
    training_pods: Annotated[
        int,
        Meta(
            ge=1,
            le=256,
            description="Pods that train one model together, as a TFJob of the Kubeflow training "
            "operator, each with what kubeflow.steps.Trainer says. 1: the step Trainer trains.",
        ),
    ] = 1
    defaults: StepConfig = StepConfig(cpu="1", memory="4G", retries=2, retry_seconds=30)
    steps: Annotated[
        dict[str, StepConfig],
        Meta(description="What single steps get instead, by name, e.g. Trainer."),
    ] = {}

    def __post_init__(self) -> None:
        """Refuses a project that no step would find.

        Raises:
            ValueError: with what does not go together.
        """
        mounted = [PurePosixPath(volume.path) for volume in self.volumes]
        if not any(PurePosixPath(self.project).is_relative_to(path) for path in mounted):
            raise ValueError(
                f"project {self.project} lies on none of the volumes, which are mounted at "
                f"{', '.join(map(str, mounted)) or 'nowhere'}"
            )
        if len(set(mounted)) < len(mounted):
            raise ValueError("two volumes are mounted at the same path")

    @property
    def all_secrets(self) -> tuple[SecretConfig, ...]:
        """The secrets of all steps, that of the metadata database among them."""
        if not (self.metadata.host and self.metadata.secret):
            return self.secrets
        of_metadata = SecretConfig(
            name=self.metadata.secret,
            env={USER_VARIABLE: "username", PASSWORD_VARIABLE: "password"},
        )
        return (of_metadata, *self.secrets)

    def step(self, name: str) -> StepConfig:
        """What a step gets, defaults filled in."""
        own = self.steps.get(name, StepConfig())
        return StepConfig(
            **{
                field: getattr(self.defaults, field)
                if getattr(own, field) is None
                else getattr(own, field)
                for field in StepConfig.__struct_fields__
            }
        )
