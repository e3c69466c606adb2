"""The server: ``app`` joins the pages behind their access, ``serve`` listens on loopback."""
