"""nfs-provisioner: Kubernetes volumes on NFS exports, with a synchronised standby, archives and accounting."""

__version__ = "0.1.0"
