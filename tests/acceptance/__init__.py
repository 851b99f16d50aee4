"""What users must see working, over real sockets against the scripted provider."""
