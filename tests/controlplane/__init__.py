"""A real Kubernetes control plane on loopback, for tests and benchmarks: etcd, API server, controller-manager."""
