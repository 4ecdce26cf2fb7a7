"""Tests against a real NFS server (nfs-ganesha) and a real NFS client (libnfs)."""
