"""The demo: a real base upgrade on a real Kubernetes, with everything it needs made on the spot.

``tasks`` makes the data, ``models`` the base versions and what is trained on them, ``cast`` names it all, ``stage`` is
cluster, volumes and Helm, ``manifests`` what users write, ``traffic`` the clients, ``upgrade`` the show itself,
``judge`` and ``promises`` decide whether it held, ``table`` is what people see.
"""
