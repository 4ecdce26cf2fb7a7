"""One suite about the Kubernetes API that nfs-provisioner relies on, run against the embedded and the real server."""
