"""What stands around the library: images, Kubernetes, Prometheus, and the services of one machine."""
