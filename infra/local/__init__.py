"""One machine: Ray on loopback, the demo and the endpoint that it leaves behind."""
