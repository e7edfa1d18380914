"""Jupyter's settings in the notebook image; read by Jupyter, which puts `c` there.

Alone it asks for the token that it prints at its start. Under Kubeflow's notebook controller, which
sets NB_PREFIX, it lies behind Kubeflow's own login, which knows no tokens.
"""

import os

c = globals()["get_config"]()
c.ServerApp.ip = "0.0.0.0"
c.ServerApp.port = 8888
c.ServerApp.open_browser = False
if prefix := os.environ.get("NB_PREFIX"):
    c.ServerApp.base_url = prefix
    c.IdentityProvider.token = ""
