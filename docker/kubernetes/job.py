"""Writes docker/kubernetes/matrix-job.yaml: the matrix as one Indexed Job, one index a cell.

A pod template names its images once, for all indexes, and each cell has an image of its own. So a pod lists every cell
as an init container; they run one after the other, and all but the one of this pod's index end at once. What a pod asks
for is then what one cell takes, for init containers do not add up. The price: a node fetches all images, once.

    python docker/kubernetes/job.py                  after a change of cells.toml
    python docker/kubernetes/job.py --registry registry.example/team --cells 3.12-tf2.19.1,3.13-tf2.21.0 > some.yaml
"""

from __future__ import annotations

import argparse
import sys
import tomllib
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
MANIFEST = HERE / "matrix-job.yaml"

HEAD = """\
# The matrix on a cluster: {count} cells as one Indexed Job, hardened as compose.yaml is. Written by job.py beside it.
#
#     kubectl apply -f docker/kubernetes/matrix-job.yaml
#     kubectl wait --for=condition=complete --timeout=1h job/portproof-matrix
#     kubectl apply -f docker/kubernetes/gather-job.yaml && kubectl logs --follow job/portproof-gather
#
# Images are those of docker/Dockerfile, portproof:3.12-tf2.19.1 and the like; job.py --registry puts a registry before.
# An index that failed has a cell that differs (exit code 1) or could not be run (2); the others go on. Applied again,
# after `kubectl delete job portproof-matrix`, it does not repeat cells that are up to date in the volume.
apiVersion: v1
kind: PersistentVolumeClaim
metadata:
  name: portproof-reports
  labels: {{app.kubernetes.io/name: portproof}}
spec:
  accessModes: [ReadWriteMany] # pods of several nodes write to it; one node alone can do with ReadWriteOnce
  resources:
    requests:
      storage: 4Gi # 120 MB a cell, less where files are the same
---
# Nothing goes in and nothing goes out, where the cluster's network plugin enforces policies.
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: portproof
  labels: {{app.kubernetes.io/name: portproof}}
spec:
  podSelector:
    matchLabels: {{app.kubernetes.io/name: portproof}}
  policyTypes: [Ingress, Egress]
---
apiVersion: batch/v1
kind: Job
metadata:
  name: portproof-matrix
  labels: {{app.kubernetes.io/name: portproof}}
spec:
  completionMode: Indexed
  completions: {count}
  parallelism: 5 # cells at a time, over all nodes
  backoffLimitPerIndex: 2 # for pods that were evicted or killed; what portproof itself says is final
  podFailurePolicy:
    rules:
      - action: Ignore
        onPodConditions: [{{type: DisruptionTarget, status: "True"}}]
      - action: FailIndex
        onExitCodes: {{operator: In, values: [1, 2]}}
  activeDeadlineSeconds: 7200
  template:
    metadata:
      labels: {{app.kubernetes.io/name: portproof}}
    spec:
      restartPolicy: Never
      automountServiceAccountToken: false
      enableServiceLinks: false
      securityContext:
        runAsNonRoot: true
        runAsUser: 1000
        runAsGroup: 1000
        fsGroup: 1000
        seccompProfile: {{type: RuntimeDefault}}
      volumes:
        - name: reports
          persistentVolumeClaim: {{claimName: portproof-reports}}
        - name: tmp
          emptyDir: {{medium: Memory, sizeLimit: 2Gi}} # it counts as memory
      initContainers:
"""
CELL = """\
        - name: {name}
          image: {image}
          command: [sh, -c]
          args: ['[ "$JOB_COMPLETION_INDEX" = {index} ] || exit 0; exec portproof cell --reports /reports']
          securityContext: {security}
          resources: {resources}
          volumeMounts: {mounts}
"""
TAIL = """\
      containers: # a pod needs one that is no init container: it says what the cell before it left
        - name: done
          image: {image}
          command: [sh, -c]
          args: ['ls -l /reports']
          securityContext: *container
          resources: {{requests: {{cpu: 10m, memory: 16Mi}}, limits: {{cpu: 100m, memory: 64Mi}}}}
          volumeMounts: *mounts
"""
SECURITY = "{allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}}"
RESOURCES = '{requests: {cpu: "2", memory: 3Gi}, limits: {cpu: "2", memory: 6Gi}}'
MOUNTS = "[{name: reports, mountPath: /reports}, {name: tmp, mountPath: /tmp}]"


def manifest(cells: list[dict[str, str]], registry: str = "") -> str:
    """The text of the manifest for these cells, in their order."""
    parts = [HEAD.format(count=len(cells))]
    images = [f"{registry}portproof:{cell['python']}-tf{cell['tensorflow']}" for cell in cells]
    for index, (cell, image) in enumerate(zip(cells, images, strict=True)):
        parts.append(
            CELL.format(
                name=f"cell-{cell['python']}-tf{cell['tensorflow']}".replace(".", "-"),
                image=image,
                index=index,
                security="*container" if index else f"&container {SECURITY}",
                resources="*resources" if index else f"&resources {RESOURCES}",
                mounts="*mounts" if index else f"&mounts {MOUNTS}",
            )
        )
    return "".join(parts) + TAIL.format(image=images[0])


def table() -> list[dict[str, str]]:
    """Every cell, as src/portproof/cells.toml has them."""
    text = (ROOT / "src/portproof/cells.toml").read_text(encoding="utf-8")
    cells: list[dict[str, str]] = tomllib.loads(text)["cells"]
    return cells


def main() -> None:
    """Write the manifest of all cells, or print that of some."""
    parser = argparse.ArgumentParser(description="The matrix as a Kubernetes Indexed Job.")
    parser.add_argument("--registry", default="", help="where the images are, such as registry.example/team")
    parser.add_argument("--cells", default="", help="these alone, such as 3.12-tf2.19.1,3.13-tf2.21.0")
    given = parser.parse_args()
    wanted = [name for name in given.cells.split(",") if name]
    cells = {f"{cell['python']}-tf{cell['tensorflow']}": cell for cell in table()}
    if unknown := [name for name in wanted if name not in cells]:
        sys.exit(f"no such cell: {', '.join(unknown)}; known: {', '.join(cells)}")
    text = manifest(
        [cell for name, cell in cells.items() if not wanted or name in wanted],
        f"{given.registry.rstrip('/')}/" if given.registry else "",
    )
    if wanted or given.registry:
        print(text, end="")
    else:
        MANIFEST.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
