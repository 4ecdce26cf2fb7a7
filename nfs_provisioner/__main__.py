"""`python -m nfs_provisioner`."""

import sys

from nfs_provisioner.cli import main

if __name__ == "__main__":
    sys.exit(main())
