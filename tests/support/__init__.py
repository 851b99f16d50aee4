"""What tests share: a loop with virtual time, leak checks, a running Steer."""
