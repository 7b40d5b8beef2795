"""The running tunnel: server and client, ingress and egress, pool, link."""
