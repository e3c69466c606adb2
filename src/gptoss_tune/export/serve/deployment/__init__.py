"""What surrounds a server: its image, its probes, its Kubernetes objects, its README."""
