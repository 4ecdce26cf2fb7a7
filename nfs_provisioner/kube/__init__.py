"""The Kubernetes side: requests, caches, queue and leader election, over raw JSON.

Must not know anything of exports, volumes or replication; metrics arrive as injected callbacks. Invariant: every
request has a deadline, and every retry has a backoff.
"""
