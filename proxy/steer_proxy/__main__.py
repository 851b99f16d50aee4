"""`python -m steer_proxy` is `steer`."""

from steer_proxy.cli import main

if __name__ == "__main__":
    main()
