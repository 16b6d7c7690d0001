"""Pure builders: values in, Kubernetes objects (JSON) out."""
