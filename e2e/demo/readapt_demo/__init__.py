"""The demo: a real base upgrade on a real Kubernetes, with everything it needs made on the spot.

``tasks`` makes the data, ``models`` the base versions and what is trained on them, ``scene`` the volumes and
manifests, ``traffic`` the clients, ``run`` the upgrade itself, ``table`` what people see.
"""
