"""JobSets on a GKE cluster that has node pools of the TPU type.

https://github.com/kubernetes-sigs/jobset
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from launch.jobs import hosts
from launch.jobs.job import Job, Recipe, Step
from launch.jobs.tpus import CHIPS_PER_HOST

_NODE = "cloud.google.com/"


def recipe(
  job: Job,
  bucket: str,
  data: Sequence[Path],
  image: str,
  namespace: str,
  queue: str | None,
  service_account: str | None,
) -> Recipe:
  """Starts a job as a JobSet, which restarts itself."""
  hosts.check_workdir(job)
  manifest = _job_set(job, namespace, queue)
  manifest["spec"]["replicatedJobs"] = [
    {
      "name": "slice",
      "replicas": job.slices,
      "template": {
        "spec": _job(job, _pod(job, bucket, image, service_account))
      },
    }
  ]
  kubectl = ("kubectl", f"--namespace={namespace}")
  state = "--output=jsonpath={.status.terminalState}"
  return Recipe(
    files={
      **hosts.files(job),
      "jobset.yaml": yaml.safe_dump(manifest, sort_keys=False),
    },
    stage=hosts.stage(job, bucket, data),
    steps=(
      Step(
        create=(*kubectl, "create", f"--filename={job.upload / 'jobset.yaml'}"),
        delete=(*kubectl, "delete", "jobset", job.name),
      ),
    ),
    states=((*kubectl, "get", "jobset", job.name, state),),
    done=frozenset({"Completed"}),
    failed=frozenset({"Failed"}),
    logs=hosts.fetch_logs(job, bucket),
  )


def _job_set(job: Job, namespace: str, queue: str | None) -> dict[str, Any]:
  metadata = {"name": job.name, "namespace": namespace}
  if queue is not None:
    metadata["labels"] = {"kueue.x-k8s.io/queue-name": queue}
  if job.tpu.hosts > 1:
    # The hosts of a slice are the nodes of one pool.
    domain = "alpha.jobset.sigs.k8s.io/exclusive-topology"
    metadata["annotations"] = {domain: _NODE + "gke-nodepool"}
  return {
    "apiVersion": "jobset.x-k8s.io/v1alpha2",
    "kind": "JobSet",
    "metadata": metadata,
    "spec": {
      "failurePolicy": {
        "maxRestarts": job.restarts,
        "rules": [
          {
            "name": "unusable-input",
            "action": "FailJobSet",
            "onJobFailureReasons": ["PodFailurePolicy"],
          }
        ],
      }
    },
  }


def _job(job: Job, pod: dict[str, Any]) -> dict[str, Any]:
  # Status 2 is unusable input, which stays unusable.
  exits = {"containerName": "train", "operator": "In", "values": [2]}
  return {
    "parallelism": job.tpu.hosts,
    "completions": job.tpu.hosts,
    # Any lost host restarts all of them.
    "backoffLimit": 0,
    "podFailurePolicy": {
      "rules": [{"action": "FailJob", "onExitCodes": exits}]
    },
    "template": pod,
  }


def _pod(
  job: Job, bucket: str, image: str, service_account: str | None
) -> dict[str, Any]:
  nodes = {
    _NODE + "gke-tpu-accelerator": job.tpu.generation.gke,
    _NODE + "gke-tpu-topology": job.tpu.topology,
  }
  tolerations = [{"key": "google.com/tpu", "operator": "Exists"}]
  if job.spot:
    nodes[_NODE + "gke-spot"] = "true"
    tolerations.append({"key": _NODE + "gke-spot", "operator": "Exists"})
  container = {
    "name": "train",
    "image": image,
    "command": ["bash", f"/bucket/launch/{job.name}/run.sh"],
    # Of libtpu, and between slices.
    "ports": [{"containerPort": n, "protocol": "TCP"} for n in (8471, 8080)],
    "env": [
      {"name": name, "valueFrom": {"secretKeyRef": _secret(name)}}
      for name in job.secrets
    ],
    "resources": {"limits": {"google.com/tpu": CHIPS_PER_HOST}},
    "volumeMounts": [{"name": "bucket", "mountPath": "/bucket"}],
  }
  volume = {
    "driver": "gcsfuse.csi.storage.gke.io",
    "volumeAttributes": {"bucketName": bucket, "mountOptions": "implicit-dirs"},
  }
  account = {"serviceAccountName": service_account} if service_account else {}
  return {
    "metadata": {"annotations": {"gke-gcsfuse/volumes": "true"}},
    "spec": {
      **account,
      "restartPolicy": "Never",
      "nodeSelector": nodes,
      "tolerations": tolerations,
      "containers": [container],
      "volumes": [{"name": "bucket", "csi": volume}],
    },
  }


def _secret(variable: str) -> dict[str, str]:
  """Key of a Kubernetes secret, which may have no capitals in its name."""
  return {"name": variable.lower().replace("_", "-"), "key": variable}
