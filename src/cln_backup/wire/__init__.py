"""The protocol between a client and a server: packets, and sockets with limits."""
