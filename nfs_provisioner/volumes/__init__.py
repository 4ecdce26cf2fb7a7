"""Claims become volumes and volumes go: decisions, objects, the reconciler, and the exports they live on."""
