"""The vLLM side: the wire format, the HTTP client, and what a server says about itself."""
